"""Pictures as examples: a broken one costs its place and nothing else, until there are too many."""

import concurrent.futures
import dataclasses
import io
import itertools
import logging
import re
import threading

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from vitdiff_jax.data import digits, images, pipeline
from vitdiff_jax.data.pipeline import DataError

SIZE, BROKEN = 10, (3, 4, 9)


def png(pixels, broken):
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0]).save(file, "PNG")
    return file.getvalue()[: 40 if broken else None]


class Pictures:
    """Record i is a PNG, 2 x 1 pixels, i on the left and 100 + i on the right; some are cut off."""

    def __init__(self, count=SIZE, broken=()):
        rows = [np.array([[[i], [100 + i]]], np.uint8) for i in range(count)]
        self.encoded = [png(row, i in broken) for i, row in enumerate(rows)]

    def __len__(self):
        return len(self.encoded)

    def __getitem__(self, index):
        return self.encoded[index], {"label": index, "index": index}


def whole(image, rng):
    """Both pixels."""
    return np.asarray(image)[..., None]


def source(records, **options):
    options = dict(name="shells", channels=1, crop=whole, max_broken=1.0) | options
    return images.Images(records, annotate=images.label_only, **options)


def number(example):
    """Which record an example is, if all that belongs to it agrees."""
    left, right = example["image"][0, :, 0]
    assert right - left == 100
    assert example["label"] == left
    assert example["label"].dtype == np.int32
    return int(left)


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.parametrize("order", [range(SIZE), range(SIZE)[::-1]], ids=["up", "down"])
def test_the_next_good_one_takes_the_place_and_nothing_shifts(caplog, order):
    """Whatever was read before: or a resumed run would see other examples."""
    found = source(Pictures(broken=BROKEN))
    for _ in range(2):
        numbers = {i: number(found.example(i)) for i in order}
        assert numbers == {i: {3: 5, 4: 5, 9: 0}.get(i, i) for i in range(SIZE)}
    assert len(found) == SIZE
    assert found.broken == set(BROKEN)
    said = warnings(caplog)
    assert len(said) == 3  # once each
    for record, line in zip(sorted(BROKEN, key=order.index), said):
        assert line.startswith(f"shells: image {record} cannot be decoded (")
        assert "\n" not in line
    assert said[-1].endswith("; 3 so far")


def test_threads_count_a_broken_picture_once(caplog):
    together = threading.Barrier(4)

    class Met(Pictures):
        def __getitem__(self, index):
            if index == 3:
                together.wait(20)
            return super().__getitem__(index)

    found = source(Met(broken=(3,)))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda _: number(found.example(3)), range(4)))
    assert numbers == [4] * 4
    assert len(warnings(caplog)) == len(found.broken) == 1


def test_too_many_stop_the_run(caplog):
    found = source(Pictures(broken=BROKEN), max_broken=0.2)
    assert [number(found.example(i)) for i in (3, 0)] == [5, 0]  # two of ten are allowed
    with pytest.raises(DataError) as caught:
        found.example(9)
    assert str(caught.value).startswith(
        "shells: 3 of 10 images cannot be decoded, more than the fraction"
        " config.data.max_broken=0.2; last image 9: "
    )
    assert "\n" not in str(caught.value)
    assert len(warnings(caplog)) == 2  # the third is told by the error


def test_nothing_good_is_an_error_not_an_endless_search():
    with pytest.raises(DataError, match="shells: no image can be decoded"):
        source(Pictures(broken=range(SIZE))).example(0)
    with pytest.raises(DataError, match="shells: none of the 10 images can be decoded"):
        source(Pictures(), listed=range(SIZE))


@pytest.mark.parametrize("threads", [1, 4])
def test_the_consumer_of_batches_gets_that_very_error(threads):
    """From a thread that reads ahead: neither wrapped nor lost."""
    found = source(Pictures(broken=BROKEN), max_broken=0.2)
    batches = pipeline.batches(found, 2, seed=0, threads=threads)
    with pytest.raises(DataError, match=r"^shells: 3 of 10 images cannot be decoded"):
        list(itertools.islice(batches, SIZE))


def test_what_is_listed_is_left_out_and_the_rest_comes_once_in_each_epoch(caplog):
    found = source(Pictures(broken=BROKEN), listed=BROKEN, max_broken=0.0)
    good = sorted(set(range(SIZE)) - set(BROKEN))
    assert [number(found.example(i)) for i in range(len(found))] == good
    stream = itertools.islice(pipeline.batches(found, 3, seed=0), len(good))  # three epochs
    labels = np.concatenate([batch["label"] for batch in stream]).reshape(3, len(good))
    assert [sorted(epoch) for epoch in labels.tolist()] == [good] * 3
    assert warnings(caplog) == []


def test_a_file_that_cannot_be_read_is_as_broken():
    class Gone(Pictures):
        def __getitem__(self, index):
            if index == 2:
                raise FileNotFoundError(2, "No such file", "shells/2.png")
            return super().__getitem__(index)

    assert number(source(Gone()).example(2)) == 3


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_half_of_the_images_are_mirrored_in_training_only(share):
    found, count = source(Pictures(), flip=share > 0), 1000
    rng = np.random.default_rng(0)
    rows = [found.example(i % SIZE, rng)["image"][0, :, 0] for i in range(count)]
    mirrored = [left > right for left, right in rows]
    assert [min(row) for row in rows] == [i % SIZE for i in range(count)]
    assert abs(sum(mirrored) - share * count) <= 4 * (count * share * (1 - share)) ** 0.5
    assert [number(found.example(i)) for i in range(SIZE)] == list(range(SIZE))


def test_pixels_that_are_stored_are_not_cropped_again():
    class Stored(Pictures):
        def __getitem__(self, index):
            return np.array([[[index], [100 + index]]], np.uint8), {"label": index}

    found = source(Stored(), crop=lambda image, rng: pytest.fail("cropped"), flip=True)
    assert [number(found.example(i)) for i in range(SIZE)] == list(range(SIZE))
    rows = [found.example(7, np.random.default_rng(i))["image"][0, :, 0] for i in range(40)]
    assert {tuple(row) for row in rows} == {(7, 107), (107, 7)}


def test_measuring_sees_the_centre_however_training_crops():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    image, rng = Image.fromarray(pixels), np.random.default_rng(0)
    centre, random = images.make_crop(12, 0.0, True), images.make_crop(12, 0.1, False)
    wanted = pixels[:, 4:16]
    for found in (centre(image, None), centre(image, rng), random(image, None)):
        np.testing.assert_array_equal(found, wanted)
    assert np.any(random(image, rng) != wanted)


def test_attributes_are_hidden_in_a_share_of_the_examples():
    """There all parts are as likely: the hidden share is uniform in [0, 1], so 1/2 on average."""
    given, rng, count = np.array([0, 1] * 50, np.int8), np.random.default_rng(0), 2000
    np.testing.assert_array_equal(images.attribute_dropout(1.0)(given.copy(), None), given)
    found = np.stack([images.attribute_dropout(0.25)(given.copy(), rng) for _ in range(count)])
    parts = (found == -1).mean(1)
    np.testing.assert_array_equal(found[found != -1], np.tile(given, (count, 1))[found != -1])
    some = parts[parts > 0]
    assert abs(len(some) / count - 0.25 * 100 / 101) < 4 * (0.25 * 0.75 / count) ** 0.5
    assert abs(some.mean() - 0.5) < 4 * (1 / 12 / len(some)) ** 0.5 + 0.01
    assert abs((some < 0.25).mean() - 0.25) < 4 * (0.25 * 0.75 / len(some)) ** 0.5


@pytest.mark.slow
@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("broken", [2, 40])
def test_training_on_broken_images(tmp_path, monkeypatch, capsys, broken):
    class Digits:
        def __init__(self, pixels, labels):
            self.pixels, self.labels = pixels[:100], labels[:100]

        def __len__(self):
            return len(self.pixels)

        def __getitem__(self, index):
            return png(self.pixels[index], index < broken), {"label": int(self.labels[index])}

    def dataset(heldout: float = 0.3):
        plain = whole_digits(heldout)
        train = source(Digits(plain.train.images, plain.train.labels), max_broken=0.05)
        return dataclasses.replace(plain, train=train)

    whole_digits = digits.dataset
    monkeypatch.setattr(digits, "dataset", dataset)
    flag = tiny.write(
        tmp_path / "broken.py", model=tiny.PLAIN, train=dict(steps=13), log=dict(every=1)
    )
    code = tiny.call(flag, f"--workdir={tmp_path / 'run'}", "--config.parallel.data_threads=2")
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    if broken == 2:
        assert (code, errors) == (0, [])
    else:
        assert code == 1
        assert len(errors) == 1
        # The sixth, or those that the other thread met before this one was heard of.
        assert re.match(r"error: shells: [1-9]\d* of 100 images cannot be decoded, more", errors[0])


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_impossible_shares(share):
    with pytest.raises(ValueError, match=r"^hide: "):
        images.attribute_dropout(share)
