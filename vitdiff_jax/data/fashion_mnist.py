"""Fashion-MNIST: 70,000 grey images of clothing in 10 classes (arXiv:1708.07747), through TFDS.

28x28 pixels, or padded with black; 10,000 images are held out.
"""

import functools
import pathlib
import shutil
import struct

import numpy as np
from PIL import Image

from vitdiff_jax.data import images, tfds_images, transforms
from vitdiff_jax.data.pipeline import Dataset

PACKED = {  # the time stamp in the gzip header of each published archive
    "train-images-idx3-ubyte": 1504176606,
    "train-labels-idx1-ubyte": 1504176606,
    "t10k-images-idx3-ubyte": 1504176627,
    "t10k-labels-idx1-ubyte": 1504176627,
}


def restore_archives(manual: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Restore the official archives from copies with stripped gzip headers, as in Linux packages.

    Debian's dataset-fashion-mnist has the published bytes except for the name and time stamp in
    each header; with these restored, TFDS's SHA-256 check passes. Other files are left alone.
    Returns the folder to use in place of `manual`.
    """
    plain = b"\x1f\x8b\x08\x00"  # deflate, no name
    paths = {name: manual / f"{name}.gz" for name in PACKED}
    if not all(path.is_file() and path.read_bytes()[:4] == plain for path in paths.values()):
        return manual
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name, path in paths.items():
        header = b"\x1f\x8b\x08\x08" + struct.pack("<I", PACKED[name]) + b"\x00\x03"
        (target / path.name).write_bytes(header + name.encode() + b"\0" + path.read_bytes()[10:])
    return target


TFDS = tfds_images.Tfds(
    name="fashion_mnist",
    train="train",
    heldout="test",
    read=lambda example: (example["image"], {"label": int(example["label"])}),
    archives=tuple(f"{name}.gz" for name in PACKED),
    home="https://github.com/zalandoresearch/fashion-mnist",
    restore=restore_archives,
)
NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def pad(image: Image.Image, rng: np.random.Generator | None, width: int) -> np.ndarray:
    """The image with `width` black pixels on each side: uint8 [28 + 2 width, 28 + 2 width, 1]."""
    return np.pad(transforms.pixels(image), ((width, width), (width, width), (0, 0)))


def dataset(
    padding: int = 2,
    data_dir: str | None = None,
    flip: bool = False,
    cache: bool = False,
    max_broken: float = 0.001,
) -> Dataset:
    """Fashion-MNIST with class labels. The other options are those of `imagenet`.

    padding: black pixels on each side; 2 makes 32x32 pixels, which halve four times.
    """
    if padding < 0:
        raise ValueError(f"padding: {padding} is negative")
    return tfds_images.dataset(
        TFDS,
        conditions=lambda builder: {"label": NAMES},
        outline={"label": NAMES},
        annotate=lambda builder, split: images.label_only,
        shape=(28 + 2 * padding, 28 + 2 * padding, 1),
        crop=functools.partial(pad, width=padding),
        crop_name="padded",
        data_dir=data_dir,
        flip=flip,
        cache=cache,
        max_broken=max_broken,
    )
