"""The data card: what is read of folders and zip files, what is left out, what looks wrong."""

import io
import json
import os
import pathlib
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from vitdiff_jax.data import card, files, folder, image_files, listing
from vitdiff_jax.data.pipeline import DataError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def encoded(seed=0, kind="PNG", size=(9, 9), mode="RGB"):
    data = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(data, kind)
    return data.getvalue()


def fill(root, names, **options):
    """Images of these names; others get the bytes given."""
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(i, **options))
    return root


def zipped(path, names, rename=lambda name: name):
    with zipfile.ZipFile(path, "w") as file:
        for i, name in enumerate(names):
            info = zipfile.ZipInfo()
            info.filename = rename(name)
            file.writestr(info, encoded(i))
    return path


CLASSES = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(6)]


def read(path, **options):
    return folder.dataset(str(path), **(dict(size=8, heldout=0.2) | options))


def said(dataset):
    return "\n".join(card.lines(dataset))


def classes(dataset):
    return dataset.conditions.get("label")


# --- Classes ---


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("/", "\\"),
        lambda name: f"./{name}",
        lambda name: f"photos/{name}",
        lambda name: f"photos\\2024\\{name}".replace("/", "\\"),
    ],
    ids=["backslashes", "dot", "wrapped", "twice"],
)
def test_zip_files_of_all_makers_have_the_same_classes(tmp_path, rename):
    plain = read(zipped(tmp_path / "a.zip", CLASSES))
    other = read(zipped(tmp_path / "b.zip", CLASSES, rename))
    assert classes(other) == classes(plain) == ("cat", "dog")
    assert other.train.records.names == plain.train.records.names
    tiny.assert_same(other.train.example(0), plain.train.example(0))
    assert ("the only folder photos" in said(other)) == ("photos" in rename("x/y.png"))


def test_a_zip_file_with_one_name_written_in_two_ways(tmp_path):
    path = zipped(tmp_path / "a.zip", ["a/1.png", "a\\1.png"])
    with pytest.raises(DataError, match=r"contains both 'a/1.png' and 'a\\\\1.png'"):
        read(path)


def test_one_folder_around_the_classes_is_passed_through(tmp_path):
    fill(tmp_path / "data", [f"a/b/{name}" for name in CLASSES])
    (tmp_path / "data" / "a" / "b" / "m.csv").write_text(
        "file_name,text\ncat/0.png,inside\na/b/cat/1.png,outside\n"
    )
    dataset = read(tmp_path / "data", captions="m.csv")
    assert classes(dataset) == ("cat", "dog")
    assert "warning: data: the only folder a/b/ is taken as the data" in said(dataset)
    assert dataset.card["captions"]["with"] == 2
    assert not classes(read(tmp_path / "data", classes=False))
    assert not classes(read(tmp_path / "data" / "a" / "b" / "cat"))


def test_images_beside_the_only_folder(tmp_path):
    dataset = read(fill(tmp_path / "data", ["stray.png", *(f"in/{n}" for n in CLASSES)]))
    assert not classes(dataset)
    assert "no classes: images lie beside in, such as stray.png" in said(dataset)
    dataset = read(fill(tmp_path / "more", ["a/b/stray.png", *(f"a/b/{n}" for n in CLASSES)]))
    assert not classes(dataset)
    assert "images lie beside cat, dog in a/b/, such as stray.png" in said(dataset)


def test_classes_of_nearly_the_same_name(tmp_path):
    names = [f"{name}/{i}.png" for name in ("Cat", "cat", "e\u0301", "\u00e9") for i in range(3)]
    dataset = read(fill(tmp_path / "data", names))
    assert len(classes(dataset)) == 4
    assert said(dataset).count("classes of nearly the same name: ") == 2


@pytest.mark.parametrize(
    ("names", "suspicious"),
    [(("Test", "train"), True), (("images", "masks"), True), (("train", "bus"), False)],
    ids=str,
)
def test_classes_that_look_like_parts(tmp_path, names, suspicious):
    dataset = read(fill(tmp_path / "data", [f"{n}/{i}.png" for n in names for i in range(4)]))
    assert classes(dataset) == tuple(sorted(names))
    assert ("are named like parts of a data set" in said(dataset)) == suspicious


def test_a_class_keeps_an_image_to_train_on(tmp_path):
    """SHA-256 of this name is below 5 % of all: it is the one that is held out."""
    names = [f"common/{i:02d}.png" for i in range(30)]
    dataset = read(fill(tmp_path / "data", [*names, "rare/77.png"]), heldout=0.05)
    assert "rare/77.png" in dataset.train.records.names
    assert dataset.card["class_counts"]["rare"] == [1, 0]
    assert "not held out, since their classes have no other to train on: rare/77.png" in said(
        dataset
    )


def test_each_class_is_trained_on_whatever_is_held_out(tmp_path):
    names = [f"{i % 7}/{i}.png" for i in range(20)]
    root = fill(tmp_path / "data", names)
    for share in (0.01, 0.5, 0.9, 0.99):
        dataset = read(root, heldout=share)
        train, rest = dataset.train.records.names, dataset.heldout.records.names
        assert sorted({*train, *rest}) == sorted(names)
        assert {name[0] for name in train} == set("0123456")
        assert set(train).isdisjoint(rest)
        assert rest
    alone = read(fill(tmp_path / "alone", ["a/1.png", "b/1.png"]))
    assert len(alone.train) == 2
    assert len(alone.heldout) == 1
    assert "too few images to hold one out: " in said(alone)


def test_a_folder_without_an_image_that_is_read_is_named(tmp_path):
    root = fill(tmp_path / "data", CLASSES)
    (root / "bird").mkdir()
    (root / "ant").mkdir()
    (root / "bird" / "IMG_0.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    fill(root, ["cut/0.png"])
    (root / "cut" / "0.png").write_bytes(encoded()[:40])
    dataset = read(root, max_broken=0.2)
    assert "no class, since without an image that can be read: ant, bird" in said(dataset)
    assert "classes without a training image: cut" in said(dataset)
    assert "1 file left out: .heic, a format that is not read; convert to JPEG" in said(dataset)


# --- Which files ---


def test_what_is_left_out_is_counted_and_named(tmp_path):
    root = fill(tmp_path / "data", CLASSES)
    for name in ("cat/._0.png", "__MACOSX/cat/._0.png", ".DS_Store", "cat/Thumbs.db",
                 "dog/desktop.ini", "@eaDir/0.png/THUMB_M.jpg", ".git/x.png"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded())
    for i in range(5):
        (root / f"{i}.txt").write_text("a note")
    dataset = read(root)
    assert len(dataset.train) + len(dataset.heldout) == 12
    assert (
        "left out: 7 hidden (.DS_Store, .git, @eaDir, ...), 5 .txt (0.txt, 1.txt, 2.txt, ...)"
        in (
            said(dataset)
            .replace("__MACOSX, ", "")
            .replace("(.DS_Store, .git, ...", "(.DS_Store, .git")
        )
    )
    assert "warning" not in said(dataset)
    pack = tmp_path / "a.zip"
    with zipfile.ZipFile(pack, "w") as file:
        for path in sorted(root.rglob("*")):
            file.write(path, path.relative_to(root).as_posix())
    assert read(pack).train.records.names == dataset.train.records.names


@pytest.mark.parametrize(
    "name",
    ["0", "a" * 32, "0.jpg?width=400", "0.jpg_large", "0.jpg!d", "0.png.1", "v1.5", "2020.12.31"],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_without_a_suffix_the_content_says(tmp_path, name, kind):
    fill(tmp_path / "data", [name], kind=kind)
    (tmp_path / "data" / "NOTES").write_text("no image")
    found = listing.images(files.Folder(tmp_path / "data"))
    assert list(found.found) == found.by_content == [name]
    assert found.left_out == {listing.BY_CONTENT: ["NOTES"]}
    dataset = read(tmp_path / "data")
    assert len(dataset.train) == 1
    assert "1 file whose suffix says nothing read as images by content" in said(dataset)
    assert list(image_files.image_names(files.Zip(zipped(tmp_path / "a.zip", [name])))) == [name]


def test_nothing_but_images_that_are_not_read(tmp_path):
    fill(tmp_path / "data", [f"IMG_{i}.HEIC" for i in range(4)])
    with pytest.raises(DataError) as caught:
        read(tmp_path / "data")
    assert str(caught.value).endswith(
        "contains no images; left out: 4 .heic (IMG_0.HEIC, IMG_1.HEIC, IMG_2.HEIC, ...);"
        " convert them to JPEG or PNG"
    )


WRONG = {
    "empty.png": (b"", "an empty file"),
    "page.jpg": (b"\n<!DOCTYPE html><html>404</html>", "a web page instead of an image"),
    "lfs.png": (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer instead"),
    "zeros.png": (bytes(500), "nothing but zeros"),
    "phone.jpg": (b"\0\0\0\x18ftypheic" + bytes(99), "in the format .heic, which is not read"),
    "cut.png": (encoded(size=(40, 40))[:200], ""),
}


def test_broken_files_are_named_with_the_reason(tmp_path):
    root = fill(tmp_path / "data", CLASSES, size=(7, 5))
    fill(root, ["cat/grey.jpg"], kind="JPEG", size=(30, 20), mode="L")
    for name, (data, _) in WRONG.items():
        (root / "cat" / name).write_bytes(data)
    for _ in range(2):  # also from the index
        dataset = read(root, max_broken=0.5)
        assert set(dataset.card["broken"]) == {f"cat/{name}" for name in WRONG}
        for name, (_, reason) in WRONG.items():
            assert dataset.card["broken"][f"cat/{name}"].startswith(reason)
        assert "left out: 6 broken (cat/cut.png: " in said(dataset)
        assert "; ... in data.json)" in said(dataset)
        assert "7x5 to 30x20 pixels; 12 in colour and 1 in grey" in said(dataset)
    with pytest.raises(DataError, match=r"cat/empty\.png: an empty file; "):
        read(root)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "L"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "LA"), ("PNG", "P"), ("WEBP", "RGB")],
)
def test_sizes_are_pillows(kind, mode):
    data = encoded(kind=kind, mode=mode, size=(31, 17))
    with Image.open(io.BytesIO(data)) as image:
        assert listing.size_of(data) == (*image.size, mode[0] == "L", mode == "CMYK")


# --- Workdirs ---


def run(path, *names):
    """A workdir with sheets."""
    fill(path, ["samples/00000001.png", "restored/cat-beside.png", *names])
    (path / "config.json").write_text(json.dumps(tiny.config().to_dict() if names else CONFIG))


CONFIG = {"data": {}, "model": {}, "diffusion": {}, "train": {}}


def test_a_workdir_in_the_data_is_no_data(tmp_path, monkeypatch):
    root = fill(tmp_path / "data", [f"{i}.png" for i in range(5)])
    monkeypatch.chdir(root)
    before = read(".")
    run(root / "runs" / "folder")
    dataset = read(".")
    assert dataset.train.records.names == before.train.records.names
    assert dataset.mark == before.mark
    assert "left out: 1 made by runs of vitdiff_jax (runs/folder/)" in said(dataset)
    (root / "config.json").write_text(json.dumps(CONFIG))  # --workdir=. too
    fill(root, ["samples/1.png", "restored-0a1b2c3d/cat/2.png", "evaluation-0a1b2c3d.png"])
    dataset = read(".")
    assert dataset.mark == before.mark
    assert (
        "4 made by runs of vitdiff_jax (evaluation-0a1b2c3d.png, restored-0a1b2c3d/, samples/, ...)"
    ) in said(dataset)
    (root / "config.json").write_text('{"model": "a camera"}')
    assert len(image_files.image_names(files.Folder(root))) == 8
    found = image_files.image_names(files.Folder(root / "runs" / "folder" / "samples"))
    assert list(found) == ["00000001.png"]  # what is asked for by name is read


# --- Reads that fail ---


def fail(monkeypatch, times, name="cat/0.png"):
    """The next reads of a file fail."""
    left, true = [times], pathlib.Path.read_bytes

    def read_bytes(self):
        if self.as_posix().endswith(name) and left[0]:
            left[0] -= 1
            raise OSError(5, "Input/output error")
        return true(self)

    monkeypatch.setattr(pathlib.Path, "read_bytes", read_bytes)


def test_a_read_that_fails_once_is_tried_again(tmp_path, monkeypatch):
    root = fill(tmp_path / "data", CLASSES)
    fail(monkeypatch, 1)
    assert "0 broken" in read(root).origin


def test_what_cannot_be_read_is_no_broken_image(tmp_path, monkeypatch):
    root = fill(tmp_path / "data", CLASSES)
    fail(monkeypatch, 3)
    dataset = read(root, max_broken=0.2)
    assert "1 broken (cat/0.png: cannot be read now: [Errno 5] Input/output error)" in said(dataset)
    assert "cat/0.png" not in dataset.train.records.names + dataset.heldout.records.names
    assert "0 broken" in read(root).origin  # the drive is back


def test_a_file_that_is_cut_by_the_drive(tmp_path, monkeypatch):
    root, true = fill(tmp_path / "data", CLASSES), pathlib.Path.read_bytes
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "read_bytes", lambda path: true(path)[:50])
        with pytest.raises(DataError, match=r"cannot be read now: .* 50 of .* bytes"):
            read(root, max_broken=1.0)
    assert "0 broken" in read(root).origin


def test_a_drive_that_is_gone_ends_it_early(tmp_path, monkeypatch):
    """Each failed read takes its time."""
    root, reads = fill(tmp_path / "data", [f"{i}.png" for i in range(400)]), []

    def gone(path):
        reads.append(path)
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(files, "WAITS", ())
    monkeypatch.setattr(pathlib.Path, "read_bytes", gone)
    with pytest.raises(DataError, match=r"\d\d files cannot be read, last .*not connected"):
        read(root, max_broken=0.05)
    assert len(reads) < 200


def test_training_goes_on_where_a_read_fails(tmp_path, monkeypatch):
    """Another image stands in, this time only; a drive that is gone ends it."""
    dataset = read(fill(tmp_path / "data", CLASSES), max_broken=0.2, flip=False)
    wanted = dataset.train.example(0)["image"]
    fail(monkeypatch, 3, dataset.train.records.names[0])
    assert (dataset.train.example(0)["image"] != wanted).any()
    assert (dataset.train.example(0)["image"] == wanted).all()
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda path: os.stat("/dev/full/gone"))
    with pytest.raises(DataError, match="cannot be read, more than the fraction"):
        dataset.train.example(0)


# --- Captions ---


FORMS = {
    "dot": lambda name: f"./{name}",
    "backslashes": lambda name: name.replace("/", "\\"),
    "with the folder": lambda name: f"data/{name}",
    "absolute": lambda name: f"/home/me/data/{name}",
    "of Windows": lambda name: f"C:\\me\\data\\{name}".replace("/", "\\"),
}
LOOSE = {
    "without suffix": lambda name: name.removesuffix(".png"),
    "another suffix": lambda name: name.replace(".png", ".jpg"),
    "upper case": str.upper,
    "elsewhere in upper case": lambda name: f"/home/me/data/{name.upper()}",
}


@pytest.mark.parametrize("form", FORMS | LOOSE)
def test_captions_by_names_of_many_forms(tmp_path, form):
    root = fill(tmp_path / "data", CLASSES)
    make = (FORMS | LOOSE)[form]
    lines = [json.dumps({"file_name": make(name), "text": name}) for name in CLASSES]
    (root / "m.jsonl").write_text("\n".join(lines))
    dataset = read(root, captions="m.jsonl")
    for part in (dataset.train, dataset.heldout):
        assert [part.records.metadata[n]["captions"] for n in part.records.names] == [
            [name] for name in part.records.names
        ]
    assert ("12 matched without regard to case" in said(dataset)) == (form in LOOSE)
    assert ("warning" in said(dataset)) == (form in LOOSE)


def test_captions_that_match_in_part(tmp_path):
    root = fill(tmp_path / "data", [f"{i}.png" for i in range(10)])
    lines = [{"file_name": f"{i}.png", "text": "x"} for i in (0, 1, 2, 3, 4, "gone")]
    (root / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert (
        "warning: data: m.jsonl: 5 of 10 images have no caption (5.png, 6.png, 7.png, ...), 1 line"
        " names no image (gone.png)"
    ) in said(read(root, captions="m.jsonl"))


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_empty_captions_are_none_and_long_ones_are_counted(tmp_path, kind):
    """Of several lines for an image the empty ones are left out; é takes two bytes."""
    root = fill(tmp_path / "data", [f"{i}.png" for i in range(6)])
    texts = [("0", ""), ("1", "  "), ("2", ""), ("2", "two"), ("3", "x" * 8), ("3", "x" * 9)]
    texts += [("4", "é" * 5), ("5", "é" * 4)]
    if kind == "csv":
        lines = ["file_name,text", *(f"{name}.png,{text}" for name, text in texts)]
    else:
        lines = [json.dumps({"file_name": f"{name}.png", "text": text}) for name, text in texts]
    (root / f"m.{kind}").write_text("\n".join(lines))
    dataset = read(root, captions=f"m.{kind}", length=8)
    assert (
        f"warning: data: m.{kind}: 2 of 6 images have no caption (0.png, 1.png), 2 longer than"
        " config.data.length bytes and cut there\n"
    ) in said(dataset) + "\n"
    known = dataset.train.records.metadata | dataset.heldout.records.metadata
    assert known["0.png"]["captions"] == known["1.png"]["captions"] == [""]
    assert known["2.png"]["captions"] == ["two"]


def test_a_name_that_several_images_have_is_none(tmp_path):
    root = fill(tmp_path / "data", [*CLASSES, "dog/alone.png"])
    (root / "m.csv").write_text("file_name,text\n0.png,which\nalone.png,that\ncat/alone.png,no\n")
    dataset = read(root, captions="m.csv")
    assert dataset.card["captions"] == {
        "with": 1, "without": 12, "lost": 2, "loosely": 1, "cut": 0,
        "names_without": ["cat/0.png", "cat/1.png", "cat/2.png"],
        "names_lost": ["0.png", "cat/alone.png"],
    }  # fmt: skip


# --- Inputs ---


def test_sets_of_samples_and_inputs_say_what_they_left_out(tmp_path):
    root = fill(tmp_path / "data", ["a.png", "b.png"])
    (root / "c.heic").write_bytes(b"?")
    found = image_files.open_images(root, "--samples")
    assert found.origin == f"2 files in {root} (left out: 1 .heic (c.heic))"
    lines = card.of_inputs(listing.images(files.Folder(root)), root)
    assert lines[0] == f"2 images in {root}; left out: 1 .heic (c.heic)"
    assert lines[1].startswith("warning: 1 file left out: .heic")


def test_names_stay_on_their_line(tmp_path):
    fill(tmp_path / "data", ["a\nb/1.png", "c/1.png", "c/2.png"])
    os.rename(tmp_path / "data/c/1.png", os.fsencode(tmp_path / "data") + b"/c/caf\xe9")
    for line in card.lines(read(tmp_path / "data")):
        assert "\n" not in line
        line.encode()
