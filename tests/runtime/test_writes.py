"""Files that several write at once, and what is left when a writer fails or dies."""

import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from tests import tiny
from vitdiff_jax.runtime import paths


@pytest.mark.parametrize("kind", [pathlib.Path, epath.Path])
def test_two_threads_that_write_one_file_leave_one_of_two_whole_files(tmp_path, kind):
    path, texts = kind(tmp_path / "file"), [letter * 200_000 for letter in (b"a", b"b")]
    failed, seen = [], set()

    def write(text):
        try:
            for _ in range(20):
                paths.write(path, text)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            seen.add(path.read_bytes())
    assert failed == []
    assert seen | {path.read_bytes()} <= set(texts)
    assert os.listdir(tmp_path) == ["file"]


def test_two_processes_that_write_one_file(tmp_path):
    code = (
        "import pathlib, sys; from vitdiff_jax.runtime import paths\n"
        "for _ in range(200): paths.write(pathlib.Path(sys.argv[1]), sys.argv[2].encode() * 9999)"
    )
    texts = ["a", "b"]
    writers = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path / "file", text], cwd=tiny.REPOSITORY)
        for text in texts
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert (tmp_path / "file").read_bytes() in {text.encode() * 9999 for text in texts}
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "file"
    paths.write(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        paths.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_long_name_can_be_written(tmp_path):
    """Its temporary name is no longer than file systems allow."""
    path = tmp_path / ("n" * 250)
    paths.write(path, b"here")
    assert os.listdir(tmp_path) == [path.name]


def test_what_killed_writers_left_is_cleaned_up_and_nothing_else(tmp_path):
    old, new = "a.json.123-0123abcd.partial", "a.json.124-0123abcd.partial"
    resumable, folder = "samples.npz.partial", "b.1-0123abcd.partial.d"
    for name in (old, new, resumable, "a.json"):
        (tmp_path / name).touch()
    (tmp_path / folder).mkdir()
    for name in (old, resumable, "a.json", folder):
        os.utime(tmp_path / name, (0, time.time() - paths.OLD - 1))
    paths.clean(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([new, resumable, "a.json", folder])
    paths.clean(tmp_path / "none")


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(paths.resolve("~/runs/x")) == f"{tmp_path}/runs/x"
    assert paths.local_copy("~/photo.png") == tmp_path / "photo.png"
    assert paths.require_local("~/photos", "path") == tmp_path / "photos"
    assert str(paths.resolve("runs/~x")) == "runs/~x"
