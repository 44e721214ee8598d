"""What people's folders hold besides pictures: copies, pages, runs in a zip file, odd classes."""

import json
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from vitdiff_jax.data import card, files, folder, index
from vitdiff_jax.runtime import pictures

RUN = json.dumps(dict(data={}, model={}, diffusion={}, train={}))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def image(seed, size=(9, 9)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return Image.fromarray(pixels)


def fill(root, names):
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image(i).save(root / name)
    return root


CLASSES = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(6)]


def said(path, **options):
    return "\n".join(card.lines(folder.dataset(str(path), **(dict(size=8, heldout=0.3) | options))))


@pytest.mark.parametrize("kind", ["gif", "webp", "tif", "png"])
def test_only_the_first_of_several_pages_is_read_and_that_is_said(tmp_path, kind):
    fill(tmp_path / "a", CLASSES)
    pages, file = [image(i) for i in range(3)], tmp_path / "a" / "cat" / f"pages.{kind}"
    pages[0].save(file, save_all=True, append_images=pages[1:])
    assert pictures.count(file.read_bytes()) == 3
    warning = f"1 file of several frames or pages, the first is read: cat/pages.{kind}"
    assert warning in said(tmp_path / "a")
    assert warning in said(tmp_path / "a")  # as known from the last time


def test_exact_copies_are_named(tmp_path):
    fill(tmp_path / "a", CLASSES)
    assert "copy another" not in said(tmp_path / "a")
    for name in ("cat/0.png", "cat/1.png"):
        (tmp_path / "a" / name.replace("cat/", "dog/copy-")).write_bytes(
            (tmp_path / "a" / name).read_bytes()
        )
    warning = "2 files that copy another, such as cat/0.png and dog/copy-0.png"
    assert f"{warning}; " in said(tmp_path / "a")
    assert "2 in several classes" in said(tmp_path / "a")


def test_copies_that_are_held_out_and_trained_on_are_counted():
    entries = {name: index.Entry([1], mark) for name, mark in zip("abcd", "1123")}
    labels = dict.fromkeys("abcd")
    (line,) = card.warnings_of_files(entries, "acd", "b", labels)
    assert line == "1 file that copy another, such as a and b; 1 held out and trained on"
    (line,) = card.warnings_of_files(entries, "abc", "d", labels)
    assert line == "1 file that copy another, such as a and b"


@pytest.mark.parametrize("other", ["cat ", "CAT", "hot dog", "hot-Dog"])
def test_classes_that_differ_in_case_and_spaces_only(tmp_path, other):
    names = [f"{name}/{i}.png" for name in ("cat", "hot_dog", other) for i in range(2)]
    assert f"classes of nearly the same name: {', '.join(sorted((other, pair(other))))}" in said(
        fill(tmp_path / "a", names)
    )


def pair(other):
    return "hot_dog" if "hot" in other else "cat"


def test_a_zip_file_of_a_folder_with_runs_and_empty_folders(tmp_path):
    path = tmp_path / "a.zip"
    fill(tmp_path / "a", [*CLASSES, "runs/r/samples/s.png", "runs/r/restored-ab/x.png"])
    with zipfile.ZipFile(path, "w") as file:
        for name in ("cat/", "bird\\", "fish/small/", "__MACOSX/"):
            info = zipfile.ZipInfo()
            info.filename = name
            file.writestr(info, "")
        for part in sorted((tmp_path / "a").rglob("*.png")):
            file.write(part, part.relative_to(tmp_path / "a"))
        file.writestr("runs/r/config.json", RUN)
        file.writestr("cat/config.json", "[" * 100_000)  # of something else
    found = files.Zip(path)
    assert {name for name in found.files() if name.endswith("png")} == set(CLASSES)
    assert found.left_out == {
        files.HIDDEN: ["__MACOSX/"], files.EMPTY: ["bird/", "fish/small/"],
        files.RUNS: ["runs/r/restored-ab/x.png", "runs/r/samples/s.png"],
    }  # fmt: skip
    assert "no class, since without an image that can be read: bird, fish, runs" in said(path)


def test_a_file_changed_in_place_with_its_old_time_is_noticed(tmp_path):
    """As `exiftool -P -overwrite_original_in_place` does: same size, time and inode."""
    fill(tmp_path / "a", CLASSES)
    marks = [folder.dataset(str(tmp_path / "a"), size=8).mark]
    file = tmp_path / "a" / "cat" / "0.png"
    before, data = file.stat(), bytearray(file.read_bytes())
    data[-13] ^= 1  # of the checksum before the end
    with file.open("r+b") as opened:
        opened.write(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert [after.st_size, after.st_mtime_ns] == [before.st_size, before.st_mtime_ns]
    marks.append(folder.dataset(str(tmp_path / "a"), size=8, max_broken=0.5).mark)
    assert marks[0] != marks[1]


def test_a_workdir_without_data_json_knows_its_data_by_the_checkpoint(tmp_path):
    """As where only config.json and checkpoints/ were copied to another machine."""
    trained = folder.dataset(str(fill(tmp_path / "a", CLASSES)), size=8)
    other = folder.dataset(str(fill(tmp_path / "b", CLASSES[1:])), size=8)
    assert card.changed(tmp_path, trained, trained.mark) == []
    (line,) = card.changed(tmp_path, other, trained.mark)
    assert line == (
        "warning: data: not what this workdir was trained on so far: the files have changed"
    )
    facts = json.dumps(card.facts(other))  # of a run that was killed before its first checkpoint
    (tmp_path / "data.json").write_text(facts)
    assert card.changed(tmp_path, other) == []
    assert card.changed(tmp_path, other, trained.mark) == [line]
