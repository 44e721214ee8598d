"""Folders with tiny archives, a config, and what the real builders prepare from them.

Only TFDS's check of checksums is ever patched, which no tiny archive could pass.
"""

import contextlib
import dataclasses
import io
import itertools
import pathlib
import re
import shutil

import numpy as np
import pytest

from tests import tiny
from tests.data import archives
from vitdiff_jax.data import pipeline, transforms
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib

SIZE = 16
SETS = {  # what makes the archives, and the data section of the config
    "imagenet": (archives.imagenet, dict(name="imagenet")),
    "captions": (archives.coco_captions, dict(name="coco", length=64)),
    "objects": (archives.coco_2017, dict(name="coco", version="2017")),
    "celeba": (archives.celeb_a, dict(name="celeba")),
}


@contextlib.contextmanager
def no_checksums():
    """Archives of any content are taken as the official ones."""
    from tensorflow_datasets.core.download import download_manager

    def note(self, url, url_info, path):
        self._recorded_url_infos[url] = url_info

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download_manager.DownloadManager, "_register_or_validate_checksums", note)
        yield


def run(*flags):
    """The command in this process: (exit code, stdout, its "error: " line or None)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = tiny.call(*flags)
    said = err.getvalue()
    lines = [line.strip() for line in re.split(r"[\r\n]|\x1b\[A", said) if line.strip()]  # no bars
    errors = [line for line in lines if line.startswith("error: ")]
    assert "Traceback" not in said
    assert len(errors) == (code != 0)
    assert not errors or lines[-1] == errors[0]
    return code, out.getvalue(), errors[0] if errors else None


@dataclasses.dataclass(frozen=True)
class Home:
    """A folder with archives, a config and the data that is prepared from them."""

    path: pathlib.Path
    data: dict
    truth: dict

    @property
    def flags(self):
        """What a user passes to every mode."""
        return [f"--config={self.path / 'tiny.py'}", f"--config.data.data_dir={self.root}"]

    @property
    def root(self):
        return self.path / "data"

    @property
    def files(self):
        """The folder of lists, caches and embeddings."""
        return self.root / "vitdiff_jax"

    def prepare(self, *flags):
        """--mode=prepare: (exit code, stdout, error line)."""
        return run("--mode=prepare", *self.flags, f"--manual={self.path / 'archives'}", *flags)

    def dataset(self, **options):
        """The data set of the config with other options."""
        changed = self.data | dict(data_dir=str(self.root)) | options
        return experiment_lib.dataset(config_lib.complete(tiny.config(data=changed)))


def home(path, name, **options):
    """A `Home` with archives, nothing prepared yet. Needs TensorFlow, which takes seconds."""
    pytest.importorskip("tensorflow")
    make, data = SETS[name]
    data = data | dict(size=SIZE)
    truth = make(path / "archives", **options)
    tiny.write(
        path / "tiny.py",
        data=data,
        model=dict(depth=1, text_width=16, text_depth=1),
        train=dict(steps=3, batch=4),
        log=dict(
            every=3, sample_every=3, heldout_every=3, heldout_images=4, heldout_levels=2, images=4
        ),
    )
    return Home(path, data, truth)


def copy_of(made, path):
    """The same data in another place, to be changed by one test."""
    shutil.copytree(made.path, path, dirs_exist_ok=True)
    return dataclasses.replace(made, path=path)


def crops(pictures, box=None):
    """{crop as bytes: file name} of a part of the archives."""
    found = {}
    for name, about in pictures.items():
        image = transforms.decode(about.data, 3)
        crop = (
            transforms.fixed_crop(image, SIZE, box) if box else transforms.centre_crop(image, SIZE)
        )
        found[crop.tobytes()] = name
    assert len(found) == len(pictures)
    return found


def everyone(source, pictures, box=None):
    """[(file name, example)] of a source as it is, each picture of the archives just once."""
    names = crops(pictures, box)
    found = [source.example(i) for i in range(len(source))]
    assert all(example["image"].shape == (SIZE, SIZE, 3) for example in found)
    assert all(example["image"].dtype == np.uint8 for example in found)
    pairs = [(names[example["image"].tobytes()], example) for example in found]
    assert sorted(name for name, _ in pairs) == sorted(pictures)
    return pairs


def drawn(source, pictures, epochs, box=None):
    """[(file name, mirrored, example)] of some epochs as training sees them."""
    names = crops(pictures, box)
    stream = pipeline.batches(source, len(source), seed=4)
    found = []
    for batch in itertools.islice(stream, epochs):
        for i in range(len(source)):
            example = {name: array[i] for name, array in batch.items()}
            image = example["image"]
            plain = names.get(image.tobytes())
            found.append((plain or names[image[:, ::-1].tobytes()], not plain, example))
    return found
