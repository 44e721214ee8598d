"""Marks: equal content has equal marks wherever and whenever it was copied; other content none."""

import dataclasses
import json
import os
import shutil
import types
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from vitdiff_jax.data import (
    card,
    coco,
    digits,
    embeddings,
    folder,
    images,
    index,
    latents,
    marks,
    records,
)
from vitdiff_jax.data.pipeline import DataError, InMemory
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.inference import evaluator
from vitdiff_jax.runtime import parallel

NAMES = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(6)]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def draw(path, seed, size=9, kind="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(path, kind)


@pytest.fixture
def photos(tmp_path):
    for i, name in enumerate(NAMES):
        draw(tmp_path / "photos" / name, i)
    return tmp_path / "photos"


def read(path, **options):
    return folder.dataset(str(path), **(dict(size=8, heldout=0.2, flip=False) | options))


@pytest.mark.parametrize("size", [0, 1, 1000, marks.WINDOW * marks.WINDOWS, 10**5, 10**6 + 7])
def test_a_file_and_its_bytes_have_one_mark(tmp_path, size):
    data = np.random.default_rng(0).bytes(size)
    (tmp_path / "a").write_bytes(data)
    assert marks.of_sample(tmp_path / "a") == marks.of_bytes(data)
    assert marks.of_bytes(data + b"\0") != marks.of_bytes(data)
    for place in {0, size // 3, size - 1} & set(range(size)):
        other = bytearray(data)
        other[place] ^= 1
        assert marks.of_bytes(bytes(other)) != marks.of_bytes(data), place
        (tmp_path / "a").write_bytes(other)
        assert marks.of_file(tmp_path / "a") != marks.digest([])


def test_files_of_up_to_16_MB_are_read_whole(tmp_path):
    """Of larger ones windows are; here the byte is in none of them."""
    place = marks.WINDOW + 1000
    for size, whole in ((2**24, True), (2**24 + 1, False)):
        data = bytearray(size)
        before = marks.of_bytes(data)
        data[place] = 1
        (tmp_path / "a").write_bytes(data)
        assert marks.of_sample(tmp_path / "a") == marks.of_bytes(data)
        assert (marks.of_bytes(data) != before) == whole
        assert marks.of_bytes(data + b"\0") != before
        data[place], data[-1] = 0, 1
        assert marks.of_bytes(data) != before


def test_a_copy_has_the_same_mark(photos, tmp_path):
    mark = read(photos).mark
    shutil.copytree(photos, tmp_path / "elsewhere")
    for path in photos.rglob("*.png"):
        os.utime(path, ns=(0, 10**18))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for path in photos.rglob("*.png"):
            file.write(path, path.relative_to(photos))
    for path in (photos, tmp_path / "elsewhere", tmp_path / "a.zip"):
        assert read(path).mark == mark
    assert read(photos, cache=True).mark == mark


def in_place(path):
    """Another image of the same size in bytes, at the same time."""
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


CHANGES = {
    "replaced": lambda root: draw(root / "cat" / "3.png", 99),
    "in place": lambda root: in_place(root / "dog" / "bitmap.bmp"),
    "class renamed": lambda root: (root / "cat").rename(root / "ewe"),
    "classes swapped": lambda root: [
        (root / a).rename(root / b) for a, b in (("cat", "x"), ("dog", "cat"), ("x", "dog"))
    ],
    "moved": lambda root: (root / "cat" / "3.png").rename(root / "dog" / "33.png"),
    "removed": lambda root: (root / "dog" / "0.png").unlink(),
    "new": lambda root: draw(root / "dog" / "new.png", 50),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_content_has_another_mark(photos, change):
    draw(photos / "dog" / "bitmap.bmp", 7, kind="BMP")
    before = read(photos).mark
    CHANGES[change](photos)
    assert read(photos).mark != before


def encode(pixels):
    return np.repeat(pixels[:, ::4, ::4].astype(np.float32), 2, -1)


def write(place, dataset, said=None):
    say = [].append if said is None else said.append
    latents.write(place, dataset.train, dataset.crop, encode, "one", say)
    return latents.Latents(place, dataset.train, dataset.crop, "one")


@pytest.mark.parametrize("change", CHANGES)
def test_latents_follow_the_images(photos, tmp_path, change):
    """Training refuses those of what the images were before; preparing makes them anew."""
    draw(photos / "dog" / "bitmap.bmp", 7, kind="BMP")
    write(tmp_path / "latents", read(photos))
    CHANGES[change](photos)
    after, said = read(photos), []
    with pytest.raises(DataError, match="--mode=prepare to make them anew"):
        latents.Latents(tmp_path / "latents", after.train, after.crop, "one")
    found = write(tmp_path / "latents", after, said)
    assert "has changed since" in said[0]
    for i in range(len(found)):
        pixels, label = (after.train.example(i)[name] for name in ("image", "label"))
        np.testing.assert_allclose(found.example(i)["image"], encode(pixels[None])[0, ..., :3])
        assert found.example(i)["label"] == label


def test_latents_of_another_folder_are_not_overwritten(photos, tmp_path):
    """The same path by mistake: hours of work."""
    write(tmp_path / "latents", read(photos))
    draw(tmp_path / "others" / "a" / "1.png", 50)
    draw(tmp_path / "others" / "b" / "1.png", 51)
    with pytest.raises(DataError, match=r"use another config\.latent\.path"):
        write(tmp_path / "latents", read(tmp_path / "others"))
    shutil.move(photos, tmp_path / "moved")
    said = []
    write(tmp_path / "latents", read(tmp_path / "moved"), said)
    assert said == []


def test_an_image_touched_is_not_decoded_again(photos, monkeypatch):
    read(photos, cache=True)
    for path in photos.rglob("*.png"):
        os.utime(path, ns=(0, 5))
    monkeypatch.setattr(images.transforms, "decode", None)
    read(photos, cache=True)


def test_an_interrupted_cache_is_not_kept_short(photos, monkeypatch):
    """An image that fails while the cache is written may be back the next time."""
    read(photos)
    with monkeypatch.context() as patch:
        patch.setattr(images.transforms, "centre_crop", lambda *_: _fail())
        with pytest.raises(DataError, match="image 0 can no longer be decoded: a bad moment"):
            read(photos, cache=True)
    dataset = read(photos, cache=True)
    assert len(dataset.train) + len(dataset.heldout) == 12


def _fail():
    raise OSError("a bad moment")


# --- Caches of TFDS ---


def test_a_cache_of_other_records_is_made_anew(tmp_path):
    source = images.Images(
        Pixels(3), name="x", channels=3, crop=lambda image, rng: image,
        annotate=images.label_only,
    )  # fmt: skip
    records.write_cache(tmp_path / "cache", source, print, "one")
    assert len(records.open_cache(tmp_path / "cache", source, "one")) == 3
    with pytest.raises(records.NotPrepared, match="a cache of other files than") as caught:
        records.open_cache(tmp_path / "cache", source, "two")
    caught.value.make(None, print)
    assert len(records.open_cache(tmp_path / "cache", source, "two")) == 3


class Pixels:
    label = 0

    def __init__(self, count, seed=0):
        self.pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return self.pixels[index], {"label": self.label}


def test_embeddings_of_other_captions_or_another_encoder_are_made_anew(tmp_path, monkeypatch):
    """The names of both stay."""
    (tmp_path / "data").mkdir()
    (tmp_path / "t5").mkdir()
    builder = types.SimpleNamespace(data_dir=tmp_path / "data", version="1.0.0")
    captions = [(b"", {"captions": ["a", "b"]})] * 3
    monkeypatch.setattr(coco.records, "TfdsRecords", lambda *_: captions)
    vectors = [np.ones((3, 4), np.float16)] * 2
    monkeypatch.setattr(embeddings, "load_encoder", lambda name: lambda texts: vectors)

    def store():
        return coco._store(builder, "train", str(tmp_path / "t5"), str(tmp_path / "home"))

    for file, content, missing in (
        ("t5/model.safetensors", b"one", "no caption embeddings"),
        ("t5/model.safetensors", b"two", "by another encoder"),
        ("data/coco-train.array_record-00000-of-00001", b"captions", "of other captions"),
    ):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(records.NotPrepared, match=missing) as caught:
            store()
        caught.value.make(None, [].append)
        assert len(store()[2]) == 2
    assert set(store().about) == {"encoder", "width", "length"}  # as in checkpoints


def test_any_source_has_a_mark_of_its_content():
    """Data sets of one's own have no files that are known."""
    one, other = (InMemory(Pixels(20, seed).pixels, np.arange(20)) for seed in (0, 1))
    same = InMemory(one.images.copy(), one.labels)
    assert marks.of_source(one) == marks.of_source(same) != marks.of_source(other)
    turned = dataclasses.replace(one, labels=one.labels[::-1])
    assert marks.of_source(turned) != marks.of_source(one)
    found = experiment_lib.clean_dataset(config_lib.complete(tiny.config()))
    assert len(found.mark) == 16


# --- Measurements ---


def yard(workdir, dataset, **evaluate):
    settings = config_lib.complete(
        tiny.config(evaluate=dict(metrics=("pixel_frechet",)) | evaluate)
    )
    return evaluator.Evaluator(settings, workdir, parallel.make_mesh(), dataset)


def mean_of(found):
    (accumulator,) = found.values() if isinstance(found, dict) else found.found.values()
    return accumulator.gaussian()[0]


def test_real_images_replaced_are_measured_anew(photos, tmp_path, capsys):
    first, dataset = yard(tmp_path, read(photos)), read(photos)
    before = mean_of(first.real("train", None, first.parts))
    for name in dataset.train.records.names:
        draw(photos / name, 777)
    changed = read(photos)
    assert len(changed.train) == len(dataset.train)
    again = yard(tmp_path, changed)
    capsys.readouterr()
    after = mean_of(again.real("train", None, again.parts))
    assert "of other images or settings, or damaged: measuring anew" in capsys.readouterr().out
    wanted = np.mean([changed.train.example(i)["image"] for i in range(len(changed.train))], 0)
    np.testing.assert_allclose(after, wanted.ravel() / 127.5 - 1, atol=1e-6)
    assert abs(after - before).max() > 0.1
    shutil.move(photos, tmp_path / "moved")
    moved = yard(tmp_path, read(tmp_path / "moved"))
    mean_of(moved.real("train", None, moved.parts))
    assert "anew" not in capsys.readouterr().out


def test_a_reference_file_replaced_is_measured_anew(tmp_path, capsys):
    """Of the same name, and the same size to the byte."""
    path, found = tmp_path / "reference.npz", []
    for seed in (0, 1, 1):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 8, 8, 1), np.uint8)
        np.savez(path, arr_0=pixels)
        os.utime(path, ns=(0, 0))
        measured = yard(tmp_path, digits.dataset(), reference=str(path))
        found.append((mean_of(measured._reference), pixels.mean(0).ravel() / 127.5 - 1))
        sizes = {path.stat().st_size}
    assert len(sizes) == 1
    for mean, wanted in found:
        np.testing.assert_allclose(mean, wanted, atol=1e-6)
    assert capsys.readouterr().out.count("measuring anew") == 1


# --- The workdir ---


def test_a_run_says_that_its_data_have_changed(photos, tmp_path):
    before = read(photos)
    (tmp_path / "data.json").write_text(json.dumps(card.facts(before)))
    assert card.changed(tmp_path, read(photos)) == []
    draw(photos / "cat" / "3.png", 99)
    (line,) = card.changed(tmp_path, read(photos))
    assert f"{len(before.train)} images and {len(before.heldout)} held out" in line
    assert card.changed(tmp_path / "none", before) == []


def test_the_card_is_json(photos, tmp_path):
    (photos / "cat" / "x.png").write_bytes(b"?")
    found = json.loads(json.dumps(card.facts(read(photos, max_broken=0.5))))
    counts = np.array(list(found["class_counts"].values()))
    assert counts.sum(0).tolist() == [found["images"], found["heldout"]]
    assert counts.sum() == 12
    assert found["classes"] == 2
    assert found["broken"] == {"cat/x.png": "cannot identify image: not an image, or unsupported"
                               " format"}  # fmt: skip
    of_digits = card.facts(digits.dataset())
    assert np.sum(list(of_digits["class_counts"].values())) == 1797


def test_an_index_of_another_version_is_made_again(photos):
    read(photos)
    (path,) = index.home_of(photos).glob("index.json")
    path.write_text(json.dumps({name: [[1, 2, 3], None] for name in NAMES} | {"x": [1, 2, None]}))
    assert "0 broken" in read(photos).origin


def test_encoded_bytes_are_marked_by_their_metadata_too():
    source = images.Images(
        Pixels(3), name="x", channels=3, crop=lambda image, rng: image,
        annotate=images.label_only,
    )  # fmt: skip
    before = source.mark(range(3))
    assert before != source.mark(range(2))
    source.records.label = 1
    assert source.mark(range(3)) != before
