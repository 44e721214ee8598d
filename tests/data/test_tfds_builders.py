"""TFDS's own builders on tiny archives in the official layouts, as a user runs them: prepare,
train, sample; and that what the pipeline delivers is what lies in the archives.
"""

import functools
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.data import archives
from tests.data.homes import SETS, SIZE, copy_of, crops, drawn, everyone, run
from vitdiff_jax.data import pipeline, transforms
from vitdiff_jax.data.pipeline import DataError

pytestmark = [pytest.mark.extra, pytest.mark.usefixtures("unoptimised")]
NUMBERS = {  # ImageNet's classes as everyone numbers them
    "n01440764": 0, "n01739381": 59, "n01751748": 65, "n02105855": 230, "n02504458": 386,
    "n03125729": 516, "n04263257": 809, "n09193705": 970, "n15075141": 999,
}  # fmt: skip
BOXES = {"128": (25, 57, 153, 185), "140": (19, 39, 159, 179)}


@pytest.fixture(scope="module")
def trained(prepared):
    """A function: the workdir of three steps of training, and what the command said.

    On captions it runs in a process of its own, whose path has a TensorFlow that cannot be used.
    """

    @functools.cache
    def get(name):
        made, _ = prepared(name)
        workdir = made.path / "run"
        flags = [*made.flags, f"--workdir={workdir}"]
        code, said, error = tiny.command(*flags) if name == "captions" else run(*flags)
        assert (code, error or None) == (0, None)
        return workdir, said

    return get


def test_prepare_says_what_it_needs_and_does(prepared):
    _, said = prepared("imagenet")
    for words in (
        "imagenet2012 is not prepared in ",
        "; files from https://image-net.org/download-images:",
        "ILSVRC2012_img_train.tar  147,897,477,120 bytes: found, but with ",
        "ILSVRC2012_img_val.tar  6,744,924,160 bytes: found, but with ",
        "GB are free",
        "decoding imagenet2012-5.1.0-train once",
        "ready: imagenet2012-5.1.0-train (15 images, 5 held out) from ",
    ):
        assert words in said
    assert "left out" not in said


def test_preparing_again_does_nothing(prepared):
    made, _ = prepared("imagenet")
    before = tiny.files(made.root)
    code, said, _ = run("--mode=prepare", *made.flags)
    assert code == 0
    assert [line.partition(" ")[0] for line in said.splitlines()] == ["workdir", "ready:"]
    assert tiny.files(made.root) == before


REPAIRED = ("n02105855_2933.JPEG", "n01739381_1309.JPEG")  # TFDS makes RGB JPEGs of these


def test_imagenet_pictures_and_labels(prepared):
    made, _ = prepared("imagenet")
    found = made.dataset()
    names = found.conditions["label"]
    assert len(names) == found.classes == 1000
    assert {wnid: names.index(wnid) for wnid in NUMBERS} == NUMBERS
    for name, example in everyone(found.heldout, made.truth["validation"]):
        assert example["label"] == NUMBERS[made.truth["validation"][name].label]
    plain = {n: p for n, p in made.truth["train"].items() if n not in REPAIRED}
    wanted = crops(plain)
    rest = []
    assert len(found.train) == 15
    for example in (found.train.example(i) for i in range(15)):
        name = wanted.pop(example["image"].tobytes(), None)
        if name:
            assert example["label"] == NUMBERS[plain[name].label]
        else:
            rest.append(example)
    assert not wanted
    # Of the two that TFDS repairs, the PNG is nearly the same as JPEG.
    assert sorted(int(example["label"]) for example in rest) == [59, 230]
    png = transforms.centre_crop(transforms.decode(made.truth["train"][REPAIRED[0]].data, 3), SIZE)
    (repaired,) = (example["image"] for example in rest if example["label"] == 230)
    assert np.abs(png.astype(int) - repaired).mean() < 10


@pytest.mark.parametrize("crop", ["128", "140"])
def test_celeba_pictures_and_attributes(prepared, crop):
    """By name, whatever the order of the file's columns: 1 is 1, -1 is 0."""
    made, _ = prepared("celeba")
    found = made.dataset(crop=crop, hide=0.0)
    names = found.conditions["attributes"]
    assert sorted(names) == sorted(archives.ATTRIBUTES)
    box = BOXES[crop]
    for source, part in ((found.train, "train"), (found.heldout, "validation")):
        pictures = made.truth[part]
        for name, example in everyone(source, pictures, box):
            assert example["attributes"].dtype == np.int8
            told = dict(zip(names, example["attributes"], strict=True))
            columns = zip(archives.ATTRIBUTES, pictures[name].attributes, strict=True)
            assert told == {attribute: int(value == 1) for attribute, value in columns}


def test_half_of_the_training_examples_are_mirrored_or_have_hidden_attributes(prepared):
    made, _ = prepared("celeba")
    found = made.dataset()
    truth = {
        name: (np.array(about.attributes) == 1).astype(int)
        for name, about in made.truth["train"].items()
    }
    assert list(found.conditions["attributes"]) == archives.ATTRIBUTES  # sorted as it is
    whole, mirrored = 0, 0
    for name, mirror, example in drawn(found.train, made.truth["train"], 30, BOXES["128"]):
        mirrored += mirror
        told = example["attributes"] >= 0
        np.testing.assert_array_equal(example["attributes"][told], truth[name][told])
        whole += bool(told.all())
    assert 0.4 < whole / 240 < 0.6
    assert 0.4 < mirrored / 240 < 0.6
    assert all((e["attributes"] >= 0).all() for e in map(found.heldout.example, range(4)))


def text_of(example):
    """What the bytes of an example say."""
    tokens = example["text"]
    count = int((tokens >= 0).sum())
    assert (tokens[count:] == -1).all()
    return bytes(tokens[:count].astype(np.uint8)).decode()


def test_captions_are_one_of_the_five_and_in_time_all(prepared):
    made, _ = prepared("captions")
    found = made.dataset()
    assert found.conditions == {"text": 64}
    seen = {name: set() for name in made.truth["train"]}
    for name, mirrored, example in drawn(found.train, made.truth["train"], 50):
        seen[name].add(text_of(example))
        assert not mirrored  # captions say "left" and "right"
    assert seen == {name: set(about.captions) for name, about in made.truth["train"].items()}


def test_captions_held_out_are_karpathys(prepared):
    """The first caption, the same each time; "restval" and "test" are left alone."""
    made, _ = prepared("captions")
    found = made.dataset(objects=True)
    for name, example in everyone(found.heldout, made.truth["val"]):
        assert text_of(example) == made.truth["val"][name].captions[0]
        assert_objects(example, made.truth["val"][name])
    assert len(made.truth["val"]) == 2


def assert_objects(example, about):
    wanted = [int(kind in about.objects) for kind in archives.CATEGORIES]
    np.testing.assert_array_equal(example["attributes"], np.array(wanted, np.int8))


def test_objects_are_those_of_the_annotations(prepared):
    made, _ = prepared("objects")
    found = made.dataset(hide=0.0)
    assert found.conditions == {"attributes": tuple(archives.CATEGORIES)}
    for source, part in ((found.train, "train"), (found.heldout, "validation")):
        for name, example in everyone(source, made.truth[part]):
            assert_objects(example, made.truth[part][name])
    for name, _, example in drawn(found.train, made.truth["train"], 3):
        assert_objects(example, made.truth["train"][name])


# Training and sampling


@pytest.mark.parametrize(
    ("name", "wish", "count"),
    [
        ("imagenet", "--label=n02504458", 15),
        ("captions", "--prompt=a red square", 6),
        ("objects", "--attributes=dog,-traffic light", 6),
        ("celeba", "--attributes=Smiling,-Male", 8),
    ],
)
def test_train_and_sample(prepared, trained, name, wish, count):
    made, _ = prepared(name)
    workdir, said = trained(name)
    (folder,) = made.root.glob("[ci]*/**/dataset_info.json")
    lines = [line for line in said.splitlines() if line.startswith("data: ")]
    assert len(lines) == 1
    assert f"({count} images, " in lines[0]
    assert f" from {folder.parent}; 16x16x3, conditions: " in lines[0]
    assert "finished at step 3" in said
    (line,) = (
        json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()
        if "heldout/loss" in line
    )  # fmt: skip
    assert np.isfinite(line["heldout/loss"])
    code, said, _ = run("--mode=sample", f"--workdir={workdir}", wish, "--n=4")
    assert code == 0
    (path,) = (workdir / "samples").glob("step3-*.png")
    assert f"4 samples in {path}" in said
    with Image.open(path) as sheet:
        assert sheet.size[0] == sheet.size[1] > 2 * SIZE


# The cache


def first_batches(source, count=9):
    return list(itertools.islice(pipeline.batches(source, 4, seed=11), count))


@pytest.mark.parametrize("name", SETS)
def test_cached_batches_are_the_same_to_the_byte(prepared, name, tmp_path):
    """Flip, captions and hidden attributes included, over more than two epochs."""
    made = copy_of(prepared(name)[0], tmp_path)
    code, said, _ = made.prepare("--config.data.cache=True")
    assert code == 0
    assert "TFDS" not in said
    assert said.count("writing the cache ") == 2
    assert said.splitlines()[-1].startswith("ready: ")
    assert " from the cache " in said.splitlines()[-1]
    plain, cached = made.dataset(flip=True), made.dataset(flip=True, cache=True)
    assert (cached.shape, cached.conditions) == (plain.shape, plain.conditions)
    for one, other in zip(first_batches(cached.train), first_batches(plain.train), strict=True):
        tiny.assert_same(one, other)
    tiny.assert_same(pipeline.stacked(cached.heldout), pipeline.stacked(plain.heldout))


def test_a_run_says_that_it_reads_the_cache(prepared, trained, tmp_path):
    """And may go over to it at any time, since nothing of what is learned depends on it."""
    trained("imagenet")
    made = copy_of(prepared("imagenet")[0], tmp_path)
    assert made.prepare("--config.data.cache=True")[0] == 0
    flags = [*made.flags, f"--workdir={made.path / 'run'}", "--config.data.cache=True"]
    code, said, _ = run(*flags)
    assert code == 0
    cache = made.files / "imagenet2012-5.1.0-train-centre-16x16x3"
    assert f"data: imagenet2012-5.1.0-train (15 images, 5 held out) from the cache {cache}" in said


def test_damaged_caches_are_one_line(prepared, tmp_path):
    made = copy_of(prepared("objects")[0], tmp_path)
    assert made.prepare("--config.data.cache=True")[0] == 0
    folder = made.files / "coco-2017-1.1.0-train-centre-16x16x3"
    records = folder / "images.array_record"
    whole = records.read_bytes()
    for content in (whole[: len(whole) // 2], b"", None):
        records.unlink() if content is None else records.write_bytes(content)
        with pytest.raises(DataError, match="delete it and prepare again") as caught:
            made.dataset(cache=True)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)
