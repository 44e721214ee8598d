"""Sheets of samples on a report: named, described in words, shown once."""

import os

import numpy as np
import pytest

from tests.reporting import reports
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.interop import sheets
from vitdiff_jax.modes import report

RANDOM = np.random.default_rng(0)
FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker"]


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "samples").mkdir()
    return tmp_path


def written(workdir):
    return reports.Page(report.write(workdir))


def noise(*shape):
    return RANDOM.integers(0, 256, shape, np.uint8)


def in_turn(names, n):
    return [names[i % len(names)] for i in range(n)]


@pytest.mark.parametrize("count", [2, 8, 20, 1000])
def test_columns_have_the_names_of_their_classes(workdir, count):
    """And each column holds images of its class alone: of class i all pixels are i."""
    names = [f"class{i}, synonym" for i in range(count)]
    n = max(2 * count, 64) if count < 1000 else 64
    images = np.stack([np.full((8, 8, 1), i % count % 256, np.uint8) for i in range(n)])
    reports.samples(workdir, "00000010", images, in_turn(names, n), step=10, seed=0)
    found = written(workdir)
    known = [name for band in found.names("columns") for name in band]
    assert known == [f"class{i}" for i in range(len(known))]
    assert len(known) == min(count, n) or len(known) >= 20
    levels = []
    for sheet in found.pictures.values():
        opaque = sheet[..., 1] > 0
        for left in range(0, sheet.shape[1], 9):
            column = sheet[:, left : left + 8, 0][opaque[:, left : left + 8]]
            assert len(set(column.tolist())) == 1
            levels.append(column[0])
    assert levels == list(range(len(known)))


def sheet(kind="samples", images=None, names=(), **about):
    images = noise(8, 1, 8, 8, 1) if images is None else images
    return sheets.Sheet(kind, images, 4, names, about)


SNEAKERS = ["Sneaker"] * 8
CAPTIONS = [
    (sheet(names=SNEAKERS, seed=0, step=300), "8 samples of class Sneaker, seed 0, step 300"),
    (sheet(names=FASHION, seed=7, step=3000), "8 samples of 8 classes, seed 7, step 3,000"),
    (sheet(names=in_turn(FASHION[:2], 8)), "8 samples, 4 of each class"),
    (sheet(names=in_turn(FASHION[:3], 8)), "8 samples of 3 classes"),
    (sheet(names=[""] * 8, seed=0), "8 unconditional samples, seed 0"),
    (sheet(images=noise(1, 1, 8, 8, 1), step=2), "1 sample, step 2"),
    (sheet(prompt="a red bus", seed=1), "8 samples for the prompt “a red bus”, seed 1"),
    (sheet(attributes="Smiling,-Male"), "8 samples with the attributes Smiling,-Male"),
    (sheet(names=["tench, Tinca tinca"] * 8), "8 samples of class tench"),
    (sheet("trajectories", noise(8, 6, 8, 8, 1), FASHION, seed=0, step=5),
     "Sampling trajectories, noise → image, seed 0, step 5"),
    (sheet("trajectories", noise(8, 6, 8, 8, 1), SNEAKERS),
     "Sampling trajectories, noise → image, class Sneaker"),
    (sheet("nearest", noise(8, 2, 8, 8, 1), SNEAKERS, step=5),
     "8 samples of class Sneaker, and their nearest training images, likeliest copies first,"
     " step 5"),
    (sheet("restored", noise(8, 3, 8, 8, 1), step=5),
     "Held-out images: degraded, restored and original, step 5"),
    (sheet(images=noise(300, 1, 64, 64, 3)), "300 samples; 40 of them are shown"),
    (sheet("nearest", noise(300, 2, 64, 64, 3)),
     "300 samples, and their nearest training images, likeliest copies first; 12 of them are"
     " shown"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "words"), CAPTIONS, ids=lambda value: str(value)[:30])
def test_captions_are_words(workdir, given, words):
    """Never the name of the file."""
    sheets.write(workdir / "samples" / "step20-label-Sneaker-n8.png", given)
    found = written(workdir)
    assert found.captions == [words]
    assert "step20-label" not in found.text


@pytest.mark.parametrize(
    ("kind", "parts", "rows"),
    [("nearest", 2, ["sample", "nearest"]), ("restored", 3, ["degraded", "restored", "original"])],
)
def test_rows_say_what_they_are(workdir, kind, parts, rows):
    """In each band, and the images stand in the row that says so."""
    images = noise(16, parts, 8, 8, 3)
    sheets.write(workdir / "samples" / "a.png", sheet(kind, images))
    found = written(workdir)
    assert set(map(tuple, found.names("rows"))) == {tuple(rows)}
    assert len(found.names("rows")) == len(found.pictures) > 1
    shown = np.concatenate(list(found.pictures.values()), 1)
    for column, row in np.ndindex(shown.shape[1] // 9, parts):
        cell = shown[9 * row : 9 * row + 8, 9 * column : 9 * column + 8, :3]
        np.testing.assert_array_equal(cell, images[column, row])


def test_a_trajectory_goes_from_noise_to_the_image(workdir):
    """With both of its ends, however many frames have no room; a row for each class."""
    images = noise(3, 50, 8, 8, 1)
    sheets.write(workdir / "samples" / "a.png", sheet("trajectories", images, FASHION[:3]))
    found = written(workdir)
    (columns,), (rows,) = found.names("columns"), found.names("rows")
    assert (columns[0], columns[-1], set(columns[1:-1])) == ("noise", "image", {"→"})
    assert rows == FASHION[:3]
    (shown,) = found.pictures.values()
    right = 9 * (len(columns) - 1)
    np.testing.assert_array_equal(shown[:8, :8, 0], images[0, 0, ..., 0])
    np.testing.assert_array_equal(shown[18:26, right : right + 8, 0], images[2, -1, ..., 0])


def test_one_grid_has_no_slider_and_no_word_on_change(workdir):
    reports.samples(workdir, "00000010", noise(6, 8, 8, 1), FASHION[:6], step=10, seed=0)
    found = written(workdir)
    assert found.all("input", "type") == []
    assert found.captions == ["6 samples of 6 classes, seed 0, step 10"]
    for words in ("over training", "each step", "change"):
        assert words not in found.text.partition("<script>")[0].partition("<body>")[2]


def test_several_grids_have_a_slider(workdir):
    for step in (10, 20, 30):
        images = noise(6, 8, 8, 1)
        reports.samples(workdir, f"{step:08d}", images, FASHION[:6], step=step, seed=0)
    found = written(workdir)
    assert found.all("input", "max") == ["2"]
    assert found.all("div", "data-name") == ["step 10", "step 20", "step 30"]
    assert found.captions == ["6 samples of 6 classes, the same noise at each step"]


def figures(workdir):
    return len(written(workdir).captions)


def test_nothing_is_shown_twice(workdir):
    """The same images, but for rounding, whatever the file is called; what differs is shown."""
    images = noise(6, 8, 8, 1)
    reports.samples(workdir, "00000010", images, FASHION[:6], step=10, seed=0)
    reports.samples(workdir, "step10-seed0-n6", images, FASHION[:6], step=10, seed=0)
    rounded = np.where(images < 255, images + 1, images).astype(np.uint8)
    reports.samples(workdir, "step10-seed0-n6-again", rounded, FASHION[:6], step=10, seed=0)
    reports.samples(workdir, "step10-seed0-n4", images[:4], FASHION[:4], step=10, seed=0)
    assert figures(workdir) == 1
    other = images.copy()
    other[5, 0, 0] ^= 128
    reports.samples(workdir, "step10-seed1-n6", other, FASHION[:6], step=10, seed=1)
    assert figures(workdir) == 2


def test_the_same_grid_at_two_steps_is_shown_once(workdir):
    """The newest, alone: as of a run that was resumed at its end, or does not learn."""
    images = noise(6, 8, 8, 1)
    for step in (10, 20):
        reports.samples(workdir, f"{step:08d}", images, FASHION[:6], step=step, seed=0)
    found = written(workdir)
    assert found.captions == ["6 samples of 6 classes, seed 0, step 20"]
    assert found.all("input", "type") == []


def test_the_same_trajectories_of_more_seeds_are_no_others(workdir):
    """What is shown is compared: the first of 6 and of 64 are the same."""
    images = noise(30, 4, 8, 8, 1)
    for count in (6, 30):
        given = sheet("trajectories", images[:count], ["a"] * count, seed=0)
        sheets.write(workdir / "samples" / f"n{count}.png", given)
    assert figures(workdir) == 1


def test_pictures_of_others_are_shown_as_they_are(workdir):
    """Without names; under a slider if they are called as those of a training."""
    pictures = noise(3, 30, 40, 3)
    for name, image in zip(("00000010", "00000020", "holiday"), pictures):
        image_lib.save_png(workdir / "samples" / f"{name}.png", image)
    found = written(workdir)
    assert found.names("columns") == found.names("rows") == []
    assert found.captions == ["Samples, the same noise at each step", "Samples, not labelled"]
    assert found.all("input", "max") == ["1"]
    np.testing.assert_array_equal(found.pictures["Samples, step 20"], pictures[1])
    np.testing.assert_array_equal(found.pictures["Samples"], pictures[2])


def test_a_sheet_that_lies_is_named(workdir):
    given = sheet(names=FASHION[:8])
    sheets.write(workdir / "samples" / "a.png", given)
    image_lib.save_png(
        workdir / "samples" / "b.png", given.pixels, text={sheets.KEY: '{"kind": "samples"}'}
    )
    found = written(workdir)
    assert "samples/b.png: ValueError: its text chunk vitdiff_jax is not " in found.text
    assert len(found.captions) == 1


def test_the_newest_are_shown_and_not_all(workdir):
    for i in range(9):
        path = workdir / "samples" / f"{i}x.png"
        sheets.write(path, sheet(seed=i))
        os.utime(path, (i, i))
    assert written(workdir).captions == [f"8 samples, seed {i}" for i in (8, 7, 6, 5)]
