"""--mode=prepare: what it says, and that whatever goes wrong is one line and can be mended."""

import contextlib
import errno
import importlib.util
import itertools
import json
import os
import shlex
import subprocess
import sys

import pytest

from tests import tiny
from tests.data.homes import copy_of, home, no_checksums, run
from vitdiff_jax.data import images, pipeline
from vitdiff_jax.data.pipeline import DataError

pytestmark = [pytest.mark.extra, pytest.mark.usefixtures("unoptimised")]


def left(made):
    """Data sets that look prepared, caches that look whole, and anything half-written."""
    patterns = ("*/*/dataset_info.json", "*/*/*/dataset_info.json", "vitdiff_jax/*/*.json",
                "**/incomplete.*", "**/*.partial")  # fmt: skip
    return {str(p.relative_to(made.root)) for pattern in patterns for p in made.root.glob(pattern)}


def test_missing_archives(tmp_path):
    made = home(tmp_path, "imagenet")
    empty = tmp_path / "empty"
    empty.mkdir()
    code, said, error = run("--mode=prepare", *made.flags, f"--manual={empty}")
    assert code == 1
    for words in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", str(empty), "--manual="):
        assert words in error
    assert "ILSVRC2012_img_train.tar  147,897,477,120 bytes: MISSING" in said
    assert "ILSVRC2012_img_val.tar  6,744,924,160 bytes: MISSING" in said
    code, _, error = run("--mode=prepare", *made.flags)
    assert str(made.root / "downloads" / "manual") in error
    (tmp_path / "archives" / "ILSVRC2012_img_val.tar").unlink()
    code, _, error = made.prepare()
    assert code == 1
    assert "put ILSVRC2012_img_val.tar from " in error
    assert not made.root.exists()
    code, _, error = run("--mode=prepare", *made.flags, f"--manual={tmp_path / 'nowhere'}")
    assert code == 2
    assert "--manual: there is no folder " in error


@pytest.mark.parametrize("name", ["celeba", "objects"])
def test_archives_of_other_content_are_refused(tmp_path, name):
    """By TFDS's own SHA-256."""
    made = home(tmp_path, name)
    code, _, error = made.prepare()
    assert code == 1
    assert "wrong checksum" in error
    assert "not of the official size: " in error
    assert not left(made)
    code, _, error = run(*made.flags, f"--workdir={tmp_path / 'run'}")
    assert code == 1
    assert "is not prepared in " in error


def test_no_connection(tmp_path, monkeypatch):
    """What TFDS fetches and cannot get: the archives can be fetched by hand."""
    from tensorflow_datasets.core.download import download_manager

    def fail(self, resource):
        raise ConnectionError("HTTPConnectionPool(host='a'):\n retries exceeded")

    monkeypatch.setattr(download_manager.DownloadManager, "_download", fail)
    made = home(tmp_path, "objects")
    for path in (tmp_path / "archives").iterdir():
        path.unlink()
    code, said, error = made.prepare()
    assert code == 1
    assert "train2017.zip  19,336,861,798 bytes: to download" in said
    assert "retries exceeded; or download the archives from https://cocodataset.org" in error
    assert "--manual=FOLDER" in error
    assert not left(made)


def test_an_archive_cut_off(tmp_path):
    made = home(tmp_path, "imagenet")
    archive = tmp_path / "archives" / "ILSVRC2012_img_train.tar"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    code, _, error = made.prepare()  # TFDS does not check what a person has to fetch
    assert code == 1
    assert "unexpected end of data" in error
    assert "not of the official size: ILSVRC2012_img_train.tar" in error
    assert not left(made)
    archive.write_bytes(whole)
    assert made.prepare()[0] == 0


def after(count, action, error):
    """`action`, which raises at its call number `count`."""
    calls = itertools.count(1)

    def run(*arguments, **options):
        if next(calls) == count:
            raise error
        return action(*arguments, **options)

    return run


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_a_build_that_was_interrupted_is_made_again(prepared, tmp_path, monkeypatch, kind):
    """With what a killed process leaves: TFDS's folder, and the partial file of a list."""
    from tensorflow_datasets.core import writer

    made = home(tmp_path, "imagenet")
    with monkeypatch.context() as patch:
        patch.setattr(writer.Writer, "write", after(9, writer.Writer.write, kind("stop")))
        code, _, error = made.prepare()
    assert code == 1
    why = "interrupted; " if kind is KeyboardInterrupt else "TFDS cannot prepare it: stop"
    assert why in error
    assert not left(made)
    rest = made.root / "imagenet2012" / "incomplete.ABC123_5.1.0"
    rest.mkdir()
    info = prepared("imagenet")[0].root / "imagenet2012" / "5.1.0" / "dataset_info.json"
    (rest / "dataset_info.json").write_bytes(info.read_bytes())
    code, _, error = run(*made.flags, f"--workdir={tmp_path / 'run'}")
    assert "is not prepared in " in error  # that folder is not taken for the data set
    assert made.prepare()[0] == 0
    assert left(made) == {"imagenet2012/5.1.0/dataset_info.json"}
    assert_same_data(made, prepared("imagenet")[0])


def assert_same_data(made, other, **options):
    found, wanted = (m.dataset(**options) for m in (made, other))
    tiny.assert_same(pipeline.stacked(found.train), pipeline.stacked(wanted.train))
    tiny.assert_same(pipeline.stacked(found.heldout), pipeline.stacked(wanted.heldout))


def test_a_folder_that_is_not_whole_is_not_taken_for_the_data_set(tmp_path):
    """As a copy that broke off leaves it: TFDS itself would go on with it."""
    made = home(tmp_path, "imagenet")
    folder = made.root / "imagenet2012" / "5.1.0"
    folder.mkdir(parents=True)
    with no_checksums():
        code, _, error = made.prepare()
    assert code == 1
    assert f"{folder}: incomplete; delete it and prepare again" in error


def test_a_cache_that_was_interrupted_is_written_again(prepared, tmp_path, monkeypatch):
    made = copy_of(prepared("imagenet")[0], tmp_path)
    pixels = images.Images.pixels
    for error in (KeyboardInterrupt(), SystemExit()):
        with monkeypatch.context() as patch, contextlib.suppress(SystemExit):
            patch.setattr(images.Images, "pixels", after(9, pixels, error))
            code, _, said = made.prepare("--config.data.cache=True")
            assert (code, "interrupted; " in said) == (1, True)
        assert left(made) == {"imagenet2012/5.1.0/dataset_info.json"}
    partial = made.files / "imagenet2012-5.1.0-train-centre-16x16x3.partial"
    partial.mkdir()
    (partial / "images.array_record").write_bytes(b"half")
    (made.files / "imagenet2012-5.1.0-train.broken.partial").write_text("{")
    assert made.prepare("--config.data.cache=True")[0] == 0
    assert not partial.exists()
    assert_same_data(made, prepared("imagenet")[0], cache=False)
    cached, plain = made.dataset(cache=True), made.dataset()
    tiny.assert_same(pipeline.stacked(cached.train), pipeline.stacked(plain.train))


def full_disk(patch):
    """array_record files are written to a device that is always full."""
    from array_record.python import array_record_module

    real = array_record_module.ArrayRecordWriter
    patch.setattr(
        array_record_module, "ArrayRecordWriter", lambda path, *options: real("/dev/full", *options)
    )


def no_room(patch):
    """TFDS's writer finds the disk full at its third example."""
    from tensorflow_datasets.core import writer

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    patch.setattr(writer.Writer, "write", after(3, writer.Writer.write, full))


@pytest.mark.parametrize("full", [no_room, full_disk])
def test_a_full_disk_while_tfds_writes(prepared, tmp_path, monkeypatch, full):
    made = home(tmp_path, "celeba")
    with no_checksums():
        with monkeypatch.context() as patch:
            full(patch)
            code, _, error = made.prepare()
        assert code == 1
        assert "No space left on device" in error
        assert not left(made)
        assert made.prepare()[0] == 0
    assert_same_data(made, prepared("celeba")[0])


def test_a_full_disk_while_the_cache_is_written(prepared, tmp_path, monkeypatch):
    made = copy_of(prepared("celeba")[0], tmp_path)
    before = left(made)
    with monkeypatch.context() as patch:
        full_disk(patch)
        code, _, error = made.prepare("--config.data.cache=True")
    assert code == 1
    assert "celeb_a-2.1.0-train-crop128-16x16x3: cannot be written: " in error
    assert "No space left on device" in error
    assert left(made) == before
    assert made.prepare("--config.data.cache=True")[0] == 0
    cached, plain = made.dataset(cache=True), made.dataset()
    tiny.assert_same(pipeline.stacked(cached.train), pipeline.stacked(plain.train))


def test_pictures_that_cannot_be_decoded_are_listed_and_left_out(tmp_path):
    made = home(tmp_path, "imagenet", broken=2)
    with no_checksums():
        code, said, _ = made.prepare("--config.data.max_broken=0.2", "--config.data.cache=True")
    assert code == 0
    path = made.files / "imagenet2012-5.1.0-train.broken.json"
    assert f"2 of 17 images cannot be decoded and are left out; for the reasons see {path}" in said
    assert "(15 images, 5 held out)" in said
    listed = json.loads(path.read_text())
    assert len(listed["broken"]) == len(set(listed["broken"])) == 2
    assert [bool(reason) and "\n" not in reason for reason in listed["reasons"]] == [True, True]
    for cache in (False, True):
        found = made.dataset(max_broken=0.2, cache=cache)
        assert len(pipeline.stacked(found.train)["image"]) == 15
        assert not found.train.broken  # none turns up again
    code, _, error = made.prepare()  # 2 of 17 are more than 0.1 %
    assert code == 1
    assert "2 of 17 images cannot be decoded, more than the fraction" in error
    assert str(path) in error
    path.write_text("{")
    code, _, error = made.prepare()
    assert code == 1
    assert f"{path}: damaged" in error


def test_training_without_the_list_counts_what_it_meets(tmp_path):
    """Data that someone else prepared with TFDS: broken pictures are replaced, up to a share."""
    made = home(tmp_path, "imagenet", broken=2)
    with no_checksums():
        assert made.prepare("--config.data.max_broken=0.2")[0] == 0
    for path in made.files.iterdir():
        path.unlink()
    found = made.dataset(max_broken=0.2).train
    images = pipeline.stacked(found)["image"]
    assert len(images) == 17
    assert len({image.tobytes() for image in images}) == 15
    code, _, error = run(*made.flags, f"--workdir={tmp_path / 'run'}", "--config.train.steps=9")
    assert code == 1
    assert "images cannot be decoded, more than the fraction config.data.max_broken=0.001" in error


def test_tensorflow_is_missing(tmp_path, monkeypatch):
    made = home(tmp_path, "imagenet")
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # what Python takes for not installed
    code, _, error = made.prepare()
    assert code == 1
    assert 'needs TensorFlow: pip install "vitdiff_jax[prepare]"' in error
    assert not made.root.exists()


def test_tensorflow_is_there_but_cannot_be_used(tmp_path):
    """As where a library of it is missing: the tests' processes have such a one."""
    made = home(tmp_path, "imagenet")
    code, _, error = tiny.command(
        "--mode=prepare", *made.flags, f"--manual={tmp_path / 'archives'}"
    )
    assert code == 1
    said = "error: imagenet2012: TFDS cannot prepare it: TensorFlow was imported"
    assert error.splitlines()[-1].startswith(said)
    assert "Traceback" not in error
    assert not left(made)


@pytest.mark.parametrize("options", [[], ["--config.data.cache=True"]])
def test_training_without_preparing_says_how(prepared, tmp_path, options):
    made = home(tmp_path, "imagenet")
    if options:  # what is missing is the cache
        made = copy_of(prepared("imagenet")[0], tmp_path)
    workdir = tmp_path / "workdir"
    code, _, error = run(*made.flags, *options, f"--workdir={workdir}")
    assert code == 1
    assert (": no such cache" if options else "imagenet2012 is not prepared in ") in error
    assert error.endswith(": run the same config once with --mode=prepare")
    assert not workdir.exists()


@pytest.fixture
def tfrecord(tmp_path):
    """CelebA as TFDS prepares it when nobody asks for array_record."""
    import tensorflow_datasets as tfds

    made = home(tmp_path, "celeba")
    builder = tfds.builder("celeb_a", data_dir=made.root)
    how = tfds.download.DownloadConfig(manual_dir=tmp_path / "archives", try_download_gcs=False)
    with no_checksums(), contextlib.redirect_stdout(None):
        builder.download_and_prepare(download_config=how)
    return made


def test_data_in_tfrecord_files_can_be_converted(tfrecord, prepared, tmp_path):
    folder = tfrecord.root / "celeb_a" / "2.1.0"
    command = f"tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record"
    before = tiny.files(tfrecord.root)
    for code, _, error in (
        tfrecord.prepare(),
        run(*tfrecord.flags, f"--workdir={tmp_path / 'run'}"),
    ):
        assert code == 1
        assert f"{folder} is prepared as tfrecord" in error
        assert error.endswith(f"&& {command}")
    assert tiny.files(tfrecord.root) == before
    if not all(map(importlib.util.find_spec, ("apache_beam", "mlcroissant"))):
        pytest.skip("the conversion needs apache_beam and mlcroissant")
    script = "from tensorflow_datasets.scripts.cli.main import launch_cli; launch_cli()"
    arguments = [sys.executable, "-c", script, *shlex.split(command)[1:]]
    subprocess.run(arguments, check=True, capture_output=True, timeout=300)
    assert tfrecord.prepare()[0] == 0
    found, wanted = (  # in any order
        sorted(example["image"].tobytes() for example in map(m.dataset().train.example, range(8)))
        for m in (tfrecord, prepared("celeba")[0])
    )
    assert found == wanted


def damaged_split(folder):
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"] = [split for split in info["splits"] if split["name"] != "validation"]
    path.write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "dataset_info.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "features.json").unlink(), "damaged"),
        (damaged_split, "has no split validation"),
    ],
)
def test_damaged_data_sets_are_one_line(prepared, tmp_path, damage, words):
    made = copy_of(prepared("imagenet")[0], tmp_path)
    folder = made.root / "imagenet2012" / "5.1.0"
    damage(folder)
    code, _, error = run(*made.flags, f"--workdir={tmp_path / 'workdir'}")
    assert code == 1
    assert str(folder) in error
    assert words in error
    assert "prepare again" in error


@pytest.mark.parametrize("size", [None, 0, 70_000])
def test_a_damaged_file_of_records_counts_as_broken_pictures(prepared, tmp_path, size):
    """Which are too many to go on, or to be put into a list and forgotten."""
    made = copy_of(prepared("imagenet")[0], tmp_path)
    (path,) = made.root.glob("imagenet2012/5.1.0/*-train.array_record*")
    path.unlink() if size is None else os.truncate(path, size)
    with pytest.raises(DataError, match="cannot be decoded, more than the fraction"):
        pipeline.stacked(made.dataset().train)
    for lost in made.files.iterdir():
        lost.unlink()
    code, _, error = made.prepare()
    assert code == 1
    assert "15 of 15 images cannot be decoded, more than the fraction" in error
    assert "imagenet2012-5.1.0-train.broken.json" in error
