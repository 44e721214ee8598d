"""Photographs in a folder: whole ones held out, crops at many scales, files that are checked."""

import csv
import hashlib
import subprocess

import numpy as np
import pytest
from PIL import Image

from vitdiff_jax.data import photographs, scenes
from vitdiff_jax.data.pipeline import DataError

SIZE = 16


def paint(path, code, height=40, width=60):
    """A photograph that tells which it is (red), and of each pixel its row and column."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([np.full_like(rows, code), 4 * rows, 4 * columns], -1).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture
def folder(tmp_path):
    for code in (10, 20, 30):
        paint(tmp_path / "train" / f"{code}.png", code)
    paint(tmp_path / "heldout" / "40.png", 40, height=72)
    return tmp_path


def test_whole_photographs_are_held_out(folder):
    dataset = photographs.dataset(SIZE, str(folder))
    rng = np.random.default_rng(0)
    drawn = {int(dataset.train.example(i, rng)["image"][0, 0, 0]) for i in range(60)}
    assert drawn == {10, 20, 30}
    assert {int(image[0, 0, 0]) for image in dataset.heldout.images} == {40}
    assert dataset.shape == dataset.train.example(0)["image"].shape == (SIZE, SIZE, 3)
    assert len(dataset.heldout) == 3 * 3 + 2 * 1  # 72 x 60 pixels, and half of that


def test_the_mark_follows_from_the_pixels(folder):
    def mark():
        return photographs.dataset(SIZE, str(folder)).mark

    before = mark()
    assert before == mark()
    paint(folder / "train" / "10.png", 11)
    assert mark() != before


def test_large_photographs_are_reduced(tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "LONGEST", 48)
    for split, code in (("train", 10), ("heldout", 20)):
        paint(tmp_path / split / "a.png", code, 40, 96)
    views = photographs.dataset(SIZE, str(tmp_path)).train.scenes[0][0]
    assert views[0].shape == (20, 48, 3)


def test_files_that_are_no_pictures_are_said(folder):
    (folder / "train" / "raw.cr2").write_bytes(b"raw")
    assert "left out of train: 1 .cr2" in photographs.dataset(SIZE, str(folder)).origin


def test_a_photograph_is_not_held_out_and_trained_on(folder):
    (folder / "heldout" / "again.png").write_bytes((folder / "train" / "10.png").read_bytes())
    with pytest.raises(DataError, match=r"heldout/again\.png is train/10\.png again; hold out"):
        photographs.dataset(SIZE, str(folder))


@pytest.mark.parametrize("missing", ["train", "heldout"])
def test_what_is_missing_is_named(folder, missing):
    for path in (folder / missing).iterdir():
        path.unlink()
    with pytest.raises(DataError, match=f"{missing}: contains no images"):
        photographs.dataset(SIZE, str(folder))
    (folder / missing).rmdir()
    with pytest.raises(DataError, match=f"{missing}: no such folder; gather photographs by"):
        photographs.dataset(SIZE, str(folder))


def test_options_are_checked(folder):
    with pytest.raises(ValueError, match=r"^path: required"):
        photographs.dataset(SIZE)
    for size in (4, 41):
        with pytest.raises(ValueError, match=f"^size: {size} is not between 8 and 40"):
            photographs.dataset(size, str(folder))
    (folder / "train" / "cut.png").write_bytes((folder / "train" / "10.png").read_bytes()[:90])
    with pytest.raises(DataError, match=r"cut\.png: "):
        photographs.dataset(SIZE, str(folder))


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Debian's tools replaced: one package with one photograph; returns its file."""
    source = tmp_path / "source.png"
    paint(source, 50)
    row = dict(split="train", name="one", licence="CC0-1.0", package="pictures", path="usr/one.png")
    listed = tmp_path / "list.csv"
    with listed.open("w") as file:
        writer = csv.DictWriter(file, [*row, "sha256"])
        writer.writeheader()
        writer.writerow(row | {"sha256": hashlib.sha256(source.read_bytes()).hexdigest()})

    def run(command, cwd, **options):
        if command[0] == "apt-get":
            (cwd / f"{command[-1]}_1_all.deb").touch()
        else:
            (command[-1] / "usr").mkdir(parents=True)
            (command[-1] / "usr" / "one.png").write_bytes(source.read_bytes())

    monkeypatch.setattr(photographs, "LIST", listed)
    monkeypatch.setattr(photographs.subprocess, "run", run)
    monkeypatch.setattr(scenes, "FILES", {"rocket": scenes.FILES["rocket"]})
    return source


def test_gathering(packages, tmp_path):
    home = tmp_path / "all"
    photographs.gather(home)
    found = {str(path.relative_to(home)) for path in home.rglob("*.png")}
    assert found == {"train/one.png", "train/rocket.png"}
    assert Image.open(home / "train" / "one.png").size == (60, 40)
    with pytest.raises(DataError, match="is not empty"):
        photographs.gather(home)


def test_other_files_are_refused(packages, tmp_path, monkeypatch):
    paint(packages, 51)
    with pytest.raises(DataError, match=r"usr/one\.png has another SHA-256"):
        photographs.gather(tmp_path / "all")

    def fails(command, **_):
        raise subprocess.CalledProcessError(100, command, stderr="E: Unable to locate package\n")

    monkeypatch.setattr(photographs.subprocess, "run", fails)
    with pytest.raises(DataError, match="pictures: E: Unable to locate package; try"):
        photographs.gather(tmp_path / "all")

    def absent(command, **_):
        raise FileNotFoundError(2, "No such file or directory", command[0])

    monkeypatch.setattr(photographs.subprocess, "run", absent)
    with pytest.raises(DataError, match="apt-get: not found: this needs Debian or Ubuntu"):
        photographs.gather(tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_the_list_is_complete():
    rows = list(csv.DictReader(photographs.LIST.open()))
    assert len({row["name"] for row in rows} | scenes.FILES.keys()) == len(rows) + 11
    assert all(len(row["sha256"]) == 64 and row["licence"] for row in rows)
    assert sum(row["split"] == "heldout" for row in rows) + len(scenes.HELDOUT) == 13
