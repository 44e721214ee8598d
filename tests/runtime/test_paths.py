"""Addresses of files: what is refused in one line, what is written whole or piece by piece."""

import pathlib
import shutil

import pytest
from etils import epath

from tests import tiny
from vitdiff_jax.runtime import paths


def refused(capsys, *flags):
    """(exit code, the only line) of a command that does not work."""
    code = tiny.call(*flags)
    (line,) = capsys.readouterr().err.splitlines()
    return code, line


def test_what_cannot_be_in_a_bucket_is_one_line(gs, capsys, tmp_path, monkeypatch):
    digits = tiny.write(tmp_path / "digits.py")
    assert refused(capsys, digits, "--workdir=gs://nobody/run") == (
        1, "error: gs://nobody/run: there is no bucket nobody",
    )  # fmt: skip
    code, line = refused(capsys, digits, "--workdir=abfs://bucket/run")
    assert (code, line.partition("; ")[0]) == (
        1, "error: abfs://bucket/run: only gs://, s3://, az:// and local paths are supported",
    )  # fmt: skip
    home = f"--workdir={tmp_path}"
    code, line = refused(capsys, digits, home, "--mode=sample", "--npz", "--workdir=gs://bucket/x")
    assert (code, "does not support incremental writes" in line) == (1, True)
    folder = tiny.write(tmp_path / "folder.py", data=dict(name="folder", path="gs://bucket/photos"))
    code, line = refused(capsys, folder, home)
    assert (code, "mount it as a folder (gcsfuse" in line) == (2, True)
    coco = tiny.write(tmp_path / "coco.py", data=dict(name="coco", size=32))
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket/data")
    code, line = refused(capsys, coco, home)
    assert (code, "mount it as a folder (gcsfuse" in line) == (2, True)
    code, line = refused(capsys, digits, home, "--mode=restore", "--input=gs://bucket/none.png")
    assert (code, line) == (1, "error: gs://bucket/none.png: there is no such object or folder")


def test_a_bucket_that_may_not_be_read_is_one_line(gs, capsys, tmp_path, monkeypatch):
    import gcsfs

    def forbidden(*_, **__):
        raise gcsfs.retry.HttpError({"code": 403, "message": "you do not have\nstorage.list"})

    monkeypatch.setattr(gcsfs.GCSFileSystem, "call", forbidden)
    flags = tiny.write(tmp_path / "digits.py"), "--workdir=gs://bucket/run"
    line = "error: gs://bucket/run: cannot be accessed: you do not have storage.list, 403"
    assert refused(capsys, *flags) == (1, line)


def test_a_missing_extra_is_one_line(capsys, tmp_path, monkeypatch):
    find = paths.importlib.util.find_spec
    monkeypatch.setattr(
        paths.importlib.util, "find_spec", lambda name: None if name == "gcsfs" else find(name)
    )
    flags = tiny.write(tmp_path / "digits.py"), "--workdir=gs://bucket/run"
    line = 'error: gs://bucket/run: needs gcsfs: pip install "vitdiff_jax[gcs]"'
    assert refused(capsys, *flags) == (1, line)


def test_what_is_appended_comes_into_a_bucket_when_it_is_due(gs, monkeypatch):
    monkeypatch.setattr(paths, "SECONDS", 0)
    home = epath.Path("gs://bucket/spool")
    spool = paths.Spool(home)
    (spool.folder / "below").mkdir()
    with (spool.folder / "below" / "a.txt").open("a") as file:
        for text in ("one\n", "two\n"):
            file.write(text)
            file.flush()
            spool.upload()
            assert (home / "below" / "a.txt").read_text().endswith(text)
    assert (home / "below" / "a.txt").read_text() == "one\ntwo\n"
    shutil.rmtree(spool.folder)
    spool.upload()
    assert (home / "below" / "a.txt").exists()  # nothing there is deleted


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    paths.write(tmp_path / "a", b"old")
    monkeypatch.setattr(pathlib.Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        paths.write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
