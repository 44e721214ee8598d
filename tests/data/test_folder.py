"""The user's own images: read as they lie, nothing written beside them, each surprise one line."""

import concurrent.futures
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from vitdiff_jax.data import files as files_lib
from vitdiff_jax.data import folder, transforms
from vitdiff_jax.data.pipeline import DataError

SIZE = 8
FORMATS = {  # suffix -> how a picture becomes a file
    ".png": dict(format="PNG"),
    ".JPG": dict(format="JPEG", quality=90),
    ".webp": dict(format="WEBP", lossless=True),
    ".bmp": dict(format="BMP"),
    ".gif": dict(format="GIF"),
    ".tiff": dict(format="TIFF"),
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Where what is known of folders is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vitdiff_jax" / "folders"


def draw(path, seed=0, **options):
    """A picture of noise, of a size of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*rng.integers(8, 20, 2), 3), np.uint8)
    Image.fromarray(pixels).save(path, **(options or FORMATS[path.suffix]))


@pytest.fixture
def photos(tmp_path):
    """18 pictures in three folders, of all formats, and other files."""
    root = tmp_path / "photos"
    for i, name in enumerate(("cats", "bears", "dogs")):
        for j, suffix in enumerate(FORMATS):
            draw(root / name / f"{j}{suffix}", seed=10 * i + j)
    (root / "notes.txt").write_text("not a picture")
    (root / "cats" / "data.h5").write_bytes(b"nor this")
    (root / "cats" / ".hidden.png").write_bytes(b"left over")
    (root / ".trash").mkdir()
    (root / ".trash" / "old.png").write_bytes(b"thrown away")
    return root


def read(path, **options):
    return folder.dataset(str(path), **(dict(size=SIZE, heldout=0.2) | options))


def refused(path, **options):
    """The one line that says why."""
    with pytest.raises(DataError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))
    return str(caught.value).removeprefix(f"{path}: ")


def names(dataset):
    """All names, sorted, and those held out."""
    train, rest = dataset.train.records.names, dataset.heldout.records.names
    assert train == sorted(train)
    return sorted({*train, *rest}), set(rest)


def examples(dataset):
    """Everything of a data set, as it is and as two epochs of training see it."""
    found = {}
    for part in ("train", "heldout"):
        source = getattr(dataset, part)
        for i in range(len(source)):
            for seed in (None, 0, 1):
                rng = None if seed is None else np.random.default_rng([seed, i])
                for name, value in source.example(i, rng).items():
                    found[part, i, seed, name] = value
    return found


def assert_same(found, wanted):
    tiny.assert_same(found, wanted)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in wanted.items()}


@pytest.fixture
def decodes(monkeypatch):
    """The pictures that were decoded."""
    found, decode = [], transforms.decode

    def spy(data, *arguments):
        found.append(data)
        return decode(data, *arguments)

    monkeypatch.setattr(transforms, "decode", spy)
    return found


def zipped(root, path):
    """A folder as a zip file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for item in sorted(root.rglob("*")):
            file.write(item, item.relative_to(root).as_posix())
    return path


# --- What is found ---


def test_the_examples_are_the_pictures(photos):
    dataset = read(photos, flip=False)
    assert dataset.shape == (SIZE, SIZE, 3)
    for source in (dataset.train, dataset.heldout):
        for i, name in enumerate(source.records.names):
            example = source.example(i, np.random.default_rng(0))
            with Image.open(photos / name) as image:
                wanted = transforms.centre_crop(image.convert("RGB"), SIZE)
            np.testing.assert_array_equal(example["image"], wanted)
            assert example["label"] == ["bears", "cats", "dogs"].index(name.partition("/")[0])
    assert len(names(dataset)[0]) == 18
    assert f"{photos} ({len(dataset.train)} images, {len(dataset.heldout)} held" in dataset.origin


def test_sub_folders_are_classes_by_name(photos):
    assert dict(read(photos).conditions) == {"label": ("bears", "cats", "dogs")}
    draw(photos / "ants" / "queens" / "1.png")
    dataset = read(photos)
    assert dataset.conditions["label"] == ("ants", "bears", "cats", "dogs")
    assert "ants/queens/1.png" in names(dataset)[0]
    dataset = read(photos, classes=False)
    assert dict(dataset.conditions) == {}
    assert set(dataset.train.example(0)) == {"image"}


def test_one_folder_is_no_class(photos, tmp_path):
    shutil.copytree(photos / "cats", tmp_path / "one" / "cats")
    for path in (tmp_path / "one", photos / "cats"):
        dataset = read(path)
        assert dict(dataset.conditions) == {}
        assert len(names(dataset)[0]) == 6


def test_a_picture_beside_class_folders(photos):
    draw(photos / "stray.png")
    assert refused(photos) == (
        "stray.png is not in any of the class folders bears, cats, dogs; move it into one, or use"
        " --config.data.classes=False"
    )
    assert len(names(read(photos, classes=False))[0]) == 19


def test_grey_and_upright(tmp_path):
    exif, pixels = Image.Exif(), np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[:, SIZE // 2 :] = 255  # the right half, below after a turn to the right
    exif[0x0112] = 6
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png", exif=exif)
    dataset = read(tmp_path / "a", channels=1, flip=False)
    assert dataset.shape == (SIZE, SIZE, 1)
    for source in (dataset.train, dataset.heldout):  # a single one is in both
        image = source.example(0)["image"]
        assert image.shape == (SIZE, SIZE, 1)
        np.testing.assert_array_equal(image[..., 0], pixels[..., 0].T)


def test_training_pictures_are_mirrored_held_out_ones_never(photos):
    dataset = read(photos)
    for source, kinds in ((dataset.train, 2), (dataset.heldout, 1)):
        seen = {source.example(0, np.random.default_rng(i))["image"].tobytes() for i in range(30)}
        assert len(seen) == kinds


def test_names_of_all_alphabets(tmp_path):
    root = tmp_path / "photos"
    for name in ("猫", "кошки", "chats à poil", "🐈"):
        draw(root / name / "été #1%.png")
    os.rename(root / "🐈" / "été #1%.png", os.fsencode(root / "🐈") + b"/caf\xe9.png")  # Latin-1
    dataset = read(root)
    assert dataset.conditions["label"] == tuple(sorted(["猫", "кошки", "chats à poil", "🐈"]))
    assert len(examples(dataset)) == (4 + 1) * 3 * 2  # one is held out and trained on
    (root / "text.jsonl").write_text('{"file_name": "猫/été #1%.png", "text": "miaou"}')
    assert read(root, captions="text.jsonl").conditions["text"] == 128


def test_links(tmp_path):
    """They are followed, one into itself is not, and one to nowhere is no picture."""
    root = tmp_path / "photos"
    draw(root / "a" / "1.png")
    draw(tmp_path / "elsewhere" / "2.png")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(root / "a" / "pipe.png")  # would be read for ever
    assert names(read(root))[0] == ["a/1.png", "b/2.png"]


def test_a_folder_that_cannot_be_read_is_not_skipped(photos, monkeypatch):
    """Permissions do not stop root, so the system's answer is made up."""
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("cats"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        read(photos)


# --- Captions ---


def caption(dataset, name, rng=None):
    """The caption of a picture, as an example has it."""
    for source in (dataset.train, dataset.heldout):
        if name in source.records.names:
            tokens = source.example(source.records.names.index(name), rng)["text"]
            assert tokens.dtype == np.int16
            assert tokens.shape == (dataset.conditions["text"],)
            return bytes(tokens[tokens >= 0].astype(np.uint8)).decode()
    raise AssertionError(name)


LINES = [
    {"file_name": "cats/0.png", "text": "a cat"},
    {"file_name": "cats/0.png", "text": "Zoë\u2028on a \u201csofa\u201d,\nasleep", "extra": 1},
    {"text": "a dog", "file_name": "dogs/1.JPG"},
    {"file_name": "not/there.png", "text": "nothing"},
]


def write_jsonl(path):
    lines = [json.dumps(line, ensure_ascii=False) for line in LINES]
    path.write_text("\ufeff" + "\n\n".join(lines) + "\n", encoding="utf-8", newline="\r\n")


def write_csv(path):
    rows = ["{}file_name,text".format("\ufeff")]
    rows += ['{},"{}"'.format(line["file_name"], line["text"]) for line in LINES]
    path.write_text("\r\n".join(rows) + "\r\n", encoding="utf-8", newline="")


@pytest.mark.parametrize(("file", "write"), [("m.jsonl", write_jsonl), ("m.csv", write_csv)])
def test_captions(photos, file, write):
    write(photos / file)
    dataset = read(photos, captions=file, length=32)
    assert dict(dataset.conditions) == {"label": ("bears", "cats", "dogs"), "text": 32}
    rng, several = np.random.default_rng(0), [line["text"] for line in LINES[:2]]
    assert caption(dataset, "cats/0.png") == several[0]
    drawn = [caption(dataset, "cats/0.png", rng) for _ in range(200)]
    assert set(drawn) == set(several)
    assert abs(drawn.count(several[0]) - 100) < 4 * 50**0.5
    assert caption(dataset, "dogs/1.JPG", rng) == "a dog"
    assert caption(dataset, "bears/0.png", rng) == ""


def test_an_accent_is_the_same_however_it_is_written(tmp_path):
    """Macs write é in file names as e and an accent; keyboards do not."""
    draw(tmp_path / "a" / "e\u0301te\u0301.png")
    (tmp_path / "a" / "m.csv").write_text("file_name,text\n\u00e9t\u00e9.png,summer\n")
    dataset = read(tmp_path / "a", captions="m.csv")
    assert caption(dataset, "e\u0301te\u0301.png") == "summer"


NEEDED = "m.{} must be JSON lines, or CSV if it ends in .csv, with the fields file_name and text:"
BAD_CAPTIONS = {
    "misnamed": ("m.jsonl", b'{"file": "cats/0.png", "text": "a"}', f"{NEEDED} line 1 lacks file"),
    "empty": ("m.jsonl", b'{"file_name": "cats/0.png", "text": null}', f"{NEEDED} line 1 lacks"),
    "list": ("m.jsonl", b"\n[1, 2]", f"{NEEDED} line 2 lacks file_name or text"),
    "no-json": ("m.jsonl", b"cats/0.png: a cat", f"{NEEDED} line 1 is not JSON: Expecting value"),
    "short": ("m.csv", b"file_name,text\ncats/0.png,a\ncats/1.JPG\n", f"{NEEDED} line 3 lacks"),
    "header": ("m.csv", b"file,text\ncats/0.png,a\n", f"{NEEDED} line 2 lacks"),
    "binary": ("m.csv", b"\xff\xfe\x00", f"{NEEDED} it is not encoded as UTF-8"),
    "none": (
        "m.csv", b"file_name,text\n0.png,a\n",
        "m.csv names none of the images, such as bears/0.png",
    ),
    "nothing": ("m.csv", b"", "m.csv names none of the images"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CAPTIONS)
def test_captions_that_are_none(photos, case):
    file, content, message = BAD_CAPTIONS[case]
    (photos / file).write_bytes(content)
    assert refused(photos, captions=file).startswith(message.format(file.partition(".")[2]))


def test_no_captions_file(photos, tmp_path):
    message = "cannot read the captions none.csv: "
    assert refused(photos, captions="none.csv") == f"{message}No such file or directory"
    path = zipped(photos, tmp_path / "photos.zip")
    assert refused(path, captions="none.csv").startswith(message)


# --- The split ---


def test_no_new_picture_ever_moves_another():
    given = [f"{i}.png" for i in range(1000)]
    _, rest = folder._split(given, 0.1)
    for count in range(100, 1000, 50):
        _, some = folder._split(given[:count], 0.1)
        assert some == sorted(set(rest) & set(given[:count]))


def test_the_split_is_by_name_alone(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*.png"):
        draw(path, seed=99)  # other pictures, another time
    found = [names(read(path))[1] for path in (photos, tmp_path / "copy")]
    assert found[0] == found[1]


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_the_share_that_is_held_out(share):
    given, count = [f"{i}.png" for i in range(20_000)], 20_000
    train, rest = folder._split(given, share)
    assert sorted(train + rest) == sorted(given)
    assert abs(len(rest) - share * count) < 4 * (count * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_neither_part_is_ever_empty(share):
    for count in range(2, 9):
        given = [f"{i}.png" for i in range(count)]
        train, rest = folder._split(given, share)
        assert min(len(train), len(rest)) == 1
        assert sorted(train + rest) == given
    assert folder._split(["a.png"], share) == (["a.png"], ["a.png"])


# --- What is kept, and where ---


def test_nothing_is_written_beside_the_pictures(photos, tmp_path, home):
    def changed():
        return {path: path.lstat().st_mtime_ns for path in (photos, *photos.rglob("*"))}

    before, contents = changed(), tiny.files(photos)
    everything = set(tmp_path.iterdir())
    for _ in range(2):
        read(photos, cache=True)
    assert (changed(), tiny.files(photos)) == (before, contents)
    assert set(tmp_path.iterdir()) == everything | {tmp_path / "cache"}
    written = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(written) == 6  # the index, a lock, and two caches of two files
    assert all(path.is_relative_to(home) for path in written)


def test_each_picture_is_tried_once(photos, decodes):
    read(photos)
    assert len(decodes) == 18
    read(photos)
    read(photos, size=4, classes=False, heldout=0.5, random_area=0.5)
    assert len(decodes) == 18


def test_only_what_is_new_or_changed_is_tried_again(photos, decodes):
    read(photos)
    decodes.clear()
    draw(photos / "cats" / "new.png", seed=5)
    (photos / "dogs" / "1.JPG").unlink()
    changed = photos / "dogs" / "0.png"
    draw(changed, seed=6)
    touched = photos / "dogs" / "2.webp"
    os.utime(touched, ns=(0, touched.stat().st_mtime_ns + 1))  # its content is as it was
    dataset = read(photos)
    assert sorted(decodes) == sorted([(photos / "cats/new.png").read_bytes(), changed.read_bytes()])
    assert len(names(dataset)[0]) == 18
    read(photos)
    assert len(decodes) == 2


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "7", '{"cats/0.png": 5}', '{"cats/0.png": [1, 2]}']
)
def test_a_damaged_index_is_made_again(photos, home, decodes, content):
    wanted = names(read(photos))
    (index,) = home.glob("*/index.json")
    index.write_text(content)
    assert names(read(photos)) == wanted
    assert len(decodes) == 36
    assert len(json.loads(index.read_text())) == 18


def test_broken_pictures_are_left_out(photos, decodes):
    (photos / "cats" / "0.png").write_bytes(b"<html>404</html>")
    whole = (photos / "dogs" / "0.png").read_bytes()
    (photos / "dogs" / "0.png").write_bytes(whole[:60])
    Image.new("L", (100, 1)).save(photos / "bears" / "0.png")
    for _ in range(2):
        dataset = read(photos, max_broken=0.2)
        assert len(names(dataset)[0]) == 15
        assert not {"cats/0.png", "dogs/0.png", "bears/0.png"} & set(names(dataset)[0])
        assert "3 broken" in dataset.origin
    assert len(decodes) == 18
    examples(dataset)
    assert not dataset.train.broken
    message = refused(photos, max_broken=0.1)
    assert message.startswith("3 of 18 images cannot be decoded, first bears/0.png: 100x1")
    assert message.endswith("; repair or remove them (config.data.max_broken=0.1)")
    (photos / "dogs" / "0.png").write_bytes(whole)  # repaired
    assert len(names(read(photos, max_broken=0.2))[0]) == 16


def test_a_folder_of_nothing_but_broken_pictures(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"?")
    message = "1 of 1 images cannot be decoded, first 1.png: cannot identify image"
    assert refused(tmp_path / "a", max_broken=1.0).startswith(message)


@pytest.mark.parametrize("flip", [False, True])
def test_the_cache_holds_the_same_examples(photos, decodes, flip):
    write_jsonl(photos / "m.jsonl")
    options = dict(captions="m.jsonl", flip=flip)
    wanted = examples(read(photos, **options))
    decodes.clear()
    read(photos, cache=True, **options)
    assert len(decodes) == 18  # once more, to write it
    dataset = read(photos, cache=True, **options)
    assert_same(examples(dataset), wanted)
    assert len(decodes) == 18
    assert dataset.origin.endswith("from the cache")


@pytest.mark.parametrize(
    "change",
    [
        lambda root: draw(root / "dogs" / "0.png", seed=77),
        lambda root: draw(root / "eels" / "0.png", seed=78),
        lambda root: (root / "cats" / "0.png").unlink(),
        lambda root: (root / "m.csv").write_text("file_name,text\ncats/0.png,another\n"),
    ],
    ids=["other", "new", "less", "caption"],
)
def test_a_cache_of_other_pictures_is_not_used(photos, change):
    write_csv(photos / "m.csv")
    before = examples(read(photos, captions="m.csv", cache=True))
    change(photos)
    found, wanted = (read(photos, captions="m.csv", cache=cache) for cache in (True, False))
    assert_same(examples(found), examples(wanted))
    with pytest.raises(AssertionError):
        assert_same(examples(found), before)


def test_a_cache_of_each_size(photos):
    for size in (8, 4):
        dataset = read(photos, cache=True, size=size)
        assert dataset.train.example(0)["image"].shape == dataset.shape == (size, size, 3)


def test_only_one_writes(photos, decodes, caplog):
    """Threads are as processes, but sure to meet; each opens the lock's file anew."""
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: read(photos, cache=True), range(4)))
    assert len(decodes) == 2 * 18  # the index, then the caches
    assert len(caplog.messages) == 2
    assert all("writing the resized images" in line for line in caplog.messages)
    found = [*map(examples, (*made, read(photos)))]
    for other in found[1:]:
        assert_same(other, found[0])


def full(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_full_disk_while_the_index_is_written(photos, home, monkeypatch):
    read(photos)
    (index,) = home.glob("*/index.json")
    before = index.read_bytes()
    draw(photos / "cats" / "new.png")
    for place, name in ((os, "replace"), (type(index), "write_text")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            with pytest.raises(DataError) as caught:
                read(photos)
        assert str(caught.value) == (
            f"{index}: cannot be written: No space left on device; free some space, or set"
            " XDG_CACHE_HOME to another folder"
        )
        assert index.read_bytes() == before
        assert {path.name for path in home.glob("*/*")} == {"index.json", "lock"}
    assert len(names(read(photos))[0]) == 19


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's full device")
@pytest.mark.parametrize("where", ["pictures", "about"])
def test_a_full_disk_while_the_cache_is_written(photos, home, monkeypatch, where):
    from array_record.python import array_record_module

    wanted, writer = examples(read(photos)), array_record_module.ArrayRecordWriter
    with monkeypatch.context() as patch:
        if where == "pictures":
            patch.setattr(
                array_record_module, "ArrayRecordWriter",
                lambda path, options: writer("/dev/full", options),
            )  # fmt: skip
        else:
            patch.setattr(type(photos), "write_text", full)
        with pytest.raises(DataError, match=f"^{home}/.*: cannot be written: .*No space") as caught:
            read(photos, cache=True)
    assert "\n" not in str(caught.value)
    assert {path.name for path in home.glob("*/*")} == {"index.json", "lock"}
    assert_same(examples(read(photos, cache=True)), wanted)


# --- Zip files ---


def test_a_zip_file_is_the_same_as_the_folder(photos, tmp_path, home):
    write_csv(photos / "m.csv")
    path = zipped(photos, tmp_path / "photos.zip")
    before = path.read_bytes()
    found, wanted = (read(p, captions="m.csv") for p in (path, photos))
    assert names(found) == names(wanted)
    assert found.conditions == wanted.conditions
    assert_same(examples(found), examples(wanted))
    cached = read(path, captions="m.csv", cache=True)
    assert_same(examples(cached), examples(wanted))
    assert path.read_bytes() == before
    assert len(list(home.iterdir())) == 2
    assert sorted(tmp_path.iterdir()) == [tmp_path / "cache", photos, path]


def test_a_zip_file_is_read_from_many_threads(photos, tmp_path):
    from vitdiff_jax.data import pipeline

    source = read(zipped(photos, tmp_path / "photos.zip")).train
    stream = pipeline.batches(source, len(source), seed=0, threads=4)
    wanted = {source.example(i)["image"].mean() for i in range(len(source))}
    for _ in range(5):
        assert {image.mean() for image in next(stream)["image"]} == wanted


def test_a_file_too_large_to_be_read(photos, monkeypatch):
    monkeypatch.setattr(files_lib, "MAX_BYTES", 100)
    assert "bears/0.png: larger than 100 bytes" in refused(photos)


# --- Nothing to read, and options ---


def test_nothing_to_read(tmp_path):
    assert refused(tmp_path / "no").startswith("no such folder or zip file (config.data.p")
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty") == "contains no images"
    (tmp_path / "empty" / "a.txt").write_text("?")
    assert refused(tmp_path / "empty") == "contains no images; left out: 1 .txt (a.txt)"
    assert refused(zipped(tmp_path / "empty", tmp_path / "a.zip")).startswith("contains no images")
    message = "not a readable zip file: File is not a zip file"
    assert refused(tmp_path / "empty" / "a.txt") == message
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(path=""), "path: set the folder, --config.data.path=FOLDER"),
        (dict(channels=2), "channels: 2 is neither 1 nor 3"),
        (dict(size=0), "size: 0 is less than 1"),
        (dict(heldout=0.0), "heldout: 0.0 is not between 0 and 1"),
        (dict(length=6), "length: 6 is not a positive multiple of 4"),
        (dict(max_broken=2.0), r"max_broken: 2.0 is not in \[0, 1\]"),
        (dict(random_area=2.0), "random_area: 2.0 is not in"),
        (dict(cache=True, random_area=0.5), "cache: stores one crop per image"),
    ],
    ids=str,
)
def test_impossible_options(photos, decodes, options, message):
    with pytest.raises(ValueError, match=message):
        folder.dataset(**(dict(path=str(photos)) | options))
    assert decodes == []


# --- The command ---


def fails(capsys, *flags):
    """(exit code, message) of a command that must say one line and no more."""
    code = tiny.call(*flags)
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return code, err.removeprefix("error: ").rstrip("\n")


@pytest.fixture
def flags(tmp_path, plain):
    """Of a run of two steps, but for the folder."""
    data = dict(name="folder", size=SIZE, heldout=0.2)
    config = tiny.write(tmp_path / "tiny.py", data=data, model=tiny.PLAIN, train=dict(steps=2))
    return [config, f"--workdir={tmp_path / 'run'}"]


def test_without_a_folder_or_room_nothing_begins(photos, tmp_path, capsys, monkeypatch, flags):
    code, message = fails(capsys, *flags)
    assert (code, message) == (
        2, "config.data.path: set the folder, --config.data.path=FOLDER"
    )  # fmt: skip
    code, message = fails(capsys, *flags, f"--config.data.path={tmp_path / 'no'}")
    assert code == 1
    assert message.startswith(f"{tmp_path / 'no'}: no such folder")
    flags.append(f"--config.data.path={photos}")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        code, message = fails(capsys, *flags)
    assert code == 1
    assert "index.json: cannot be written: No space left on device; free some space" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_train_and_sample_on_a_folder(photos, tmp_path, capsys, flags):
    workdir = tmp_path / "run"
    flags.append(f"--config.data.path={photos}")
    assert tiny.call(*flags) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"data: {photos} (" in captured.out
    assert "finished at step 2" in captured.out
    sampling = [f"--workdir={workdir}", "--mode=sample", "--n=3"]
    assert tiny.call(*sampling, "--label=dogs", "--nearest") == 0
    said = capsys.readouterr().out
    assert " of 3 samples look like copies of a training image" in said
    found = {path.name for path in (workdir / "samples").glob("step2*")}
    assert found == {"step2-label-dogs-seed0-n3.png", "step2-label-dogs-seed0-n3-nearest.png"}
    code, message = fails(capsys, *sampling, "--label=dog")
    unknown = "label: unknown class 'dog'; did you mean dogs?; available: bears, cats, dogs"
    assert (code, message) == (2, unknown)
    code, message = fails(capsys, *sampling, "--label=3")
    assert (code, message) == (2, "label: 3 is not in -1 (null class) to 2")

    draw(photos / "eels" / "0.png", seed=99)  # one class more: the same labels would mean others
    before = tiny.files(workdir)
    for mode in ([], ["--mode=evaluate", "--config.evaluate.metrics=('class_accuracy',)"]):
        code, message = fails(capsys, *flags, *mode, "--config.train.steps=3")
        assert code == 2
        assert message.startswith("config.data: has the conditions {'label': ['bears', 'cats', ")
        assert message.endswith("; use the original dataset or another --workdir")
    assert tiny.files(workdir) == before | {"config.json": (workdir / "config.json").read_bytes()}
