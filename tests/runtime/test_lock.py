"""A workdir has one writer: who is alive keeps it, who is dead loses it, wherever they run."""

import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
from unittest import mock

import pytest
from etils import epath

from tests import parts, tiny
from vitdiff_jax.runtime import lock
from vitdiff_jax.runtime.lock import LockError

HOLD = (
    "import sys, time; from etils import epath; from vitdiff_jax.runtime import lock\n"
    "with lock.hold(epath.Path(sys.argv[1]), None): print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def workdir(tmp_path):
    return epath.Path(tmp_path / "run")


@pytest.fixture
def quick(monkeypatch):
    """A tenth of a second stands for ten."""
    monkeypatch.setattr(lock, "BEAT", 0.1)
    monkeypatch.setattr(lock, "STALE", 0.6)


@pytest.fixture
def holder(workdir):
    """A process that holds the lock of the workdir."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, workdir], cwd=tiny.REPOSITORY, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def said(lines):
    """A function that takes lines."""
    return lines.append


def elsewhere(workdir, **changes):
    """Make the owner in the lock file one that cannot be seen from here."""
    path = workdir / lock.FILE
    about = json.loads(path.read_text()) | dict(machine="another", host="node7", token="its")
    path.write_text(json.dumps(about | changes))
    return about


def test_a_lock_is_there_while_it_is_held_and_nothing_stays(tmp_path, workdir):
    workdir = workdir / "not" / "yet"
    with lock.hold(workdir, None):
        about = json.loads((workdir / "lock.json").read_text())
        assert about["process"] == os.getpid()
        assert list(workdir.iterdir()) == [workdir / "lock.json"]
    assert os.listdir(tmp_path) == []


def test_what_was_written_under_it_stays(workdir):
    with lock.hold(workdir, None):
        (workdir / "file").touch()
    assert os.listdir(workdir) == ["file"]


def test_a_living_owner_keeps_it_and_is_named(workdir, holder):
    before = tiny.files(pathlib.Path(workdir))
    for take in (
        lambda: lock.dead_owner(workdir, pytest.fail),
        lambda: lock.hold(workdir, None).__enter__(),
    ):
        with pytest.raises(LockError) as caught:
            take()
        text = str(caught.value)
        host = os.uname().nodename
        assert text.startswith(
            f"{workdir}: another run is writing here: process {holder.pid} on {host}, since 20"
        )
        assert text.endswith("UTC; wait for it, stop it, or use another --workdir")
    assert tiny.files(pathlib.Path(workdir)) == before


@pytest.mark.parametrize("reaped", [True, False])
def test_what_a_killed_owner_leaves_is_taken_over_at_once(workdir, holder, reaped):
    """Also while its parent has not noticed yet."""
    holder.kill()
    if reaped:
        holder.wait()
    time.sleep(0.1)
    began = time.monotonic()
    with lock.hold(workdir, lock.dead_owner(workdir, pytest.fail)):
        assert time.monotonic() - began < 1
    assert not workdir.exists()  # which the dead one made


def test_another_process_with_the_number_of_a_dead_one_is_not_the_owner(workdir, holder):
    with lock.hold(epath.Path(workdir / "other"), None):
        pass
    about = json.loads((workdir / lock.FILE).read_text())
    (workdir / lock.FILE).write_text(json.dumps(about | {"started": about["started"] - 1}))
    assert lock.dead_owner(workdir, pytest.fail) == about["token"]


def eight(workdir, dead=lambda: None):
    """How many of eight threads get the lock at once, and how many are refused."""
    taken, refused, barrier = [], [], threading.Barrier(8)

    def run():
        owner = dead()
        barrier.wait()
        try:
            with lock.hold(workdir, owner):
                taken.append(1)
                time.sleep(0.5)
        except LockError:
            refused.append(1)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(taken), len(refused)


def test_threads_of_one_process(workdir):
    assert eight(workdir) == (1, 7)
    assert not workdir.exists()


def test_eight_that_take_over_at_once_are_one(workdir, holder):
    holder.kill()
    holder.wait()
    assert eight(workdir, lambda: lock.dead_owner(workdir, pytest.fail)) == (1, 7)


def test_a_folder_of_the_users_stays(workdir):
    workdir.mkdir()
    about = os.stat(workdir).st_ino
    assert eight(workdir) == (1, 7)
    assert os.stat(workdir).st_ino == about


@pytest.mark.parametrize("name", ["open", "rename"])
def test_a_folder_that_the_owner_before_removes_meanwhile(workdir, monkeypatch, name):
    """Before it is opened, or with its parent before it has its name."""
    original = getattr(os, name)

    def late(*args):
        monkeypatch.setattr(os, name, original)
        shutil.rmtree(workdir.parent if name == "rename" else workdir)
        return original(*args)

    workdir = workdir / "new"
    (workdir.parent if name == "rename" else workdir).mkdir(parents=True)
    monkeypatch.setattr(os, name, late)
    with lock.hold(workdir, None):
        assert os.listdir(workdir) == [lock.FILE]
    assert not workdir.exists()


def test_a_folder_that_takes_its_place_is_the_one_that_is_locked(workdir, monkeypatch):
    workdir.mkdir()
    locked, flock = [], fcntl.flock

    def replaced(folder, how):
        if not locked:
            workdir.rmdir()
            workdir.mkdir()
        locked.append(os.fstat(folder).st_ino)
        flock(folder, how)

    monkeypatch.setattr(fcntl, "flock", replaced)
    with lock.hold(workdir, None):
        assert locked[1:] == [os.stat(workdir).st_ino]


def test_where_no_folder_can_be_renamed(tmp_path, workdir, monkeypatch):
    monkeypatch.setattr(os, "rename", mock.Mock(side_effect=OSError("not here")))
    with lock.hold(workdir, None):
        assert os.listdir(tmp_path) == ["run"]
    assert os.listdir(tmp_path) == []


def test_the_current_folder_stays(workdir, monkeypatch):
    workdir.mkdir()
    monkeypatch.chdir(workdir)
    with lock.hold(workdir, None):
        pass
    assert os.listdir() == []


def test_an_owner_elsewhere_is_believed_while_it_has_a_pulse(workdir, quick):
    with lock.hold(workdir, None):
        elsewhere(workdir)
        stop, lines = threading.Event(), []

        def beat():
            while not stop.wait(0.1):
                elsewhere(workdir, renewed=time.time())

        thread = threading.Thread(target=beat)
        thread.start()
        with pytest.raises(LockError, match=r"process \d+ on node7, since"):
            lock.dead_owner(workdir, said(lines))
        stop.set()
        thread.join()
        assert "is locked by process" in lines[0]
    assert (workdir / lock.FILE).exists()


def test_an_owner_elsewhere_without_a_pulse_loses_it(workdir, quick):
    workdir.mkdir()
    with lock.hold(workdir, None) as own:
        own._released.set()
        about = elsewhere(workdir, renewed=time.time() + 1e6)  # its clock is wrong
        dead = lock.dead_owner(workdir, said([]))
        assert dead == about["token"]
    with lock.hold(workdir, dead):
        assert json.loads((workdir / lock.FILE).read_text())["process"] == os.getpid()


def test_the_owner_renews_it(workdir, quick):
    with lock.hold(workdir, None):
        first = json.loads((workdir / lock.FILE).read_text())["renewed"]
        time.sleep(0.4)
        assert json.loads((workdir / lock.FILE).read_text())["renewed"] > first


def test_who_was_taken_for_dead_stops_and_leaves_the_others_lock(workdir, quick):
    with lock.hold(workdir, None) as own:
        own.check()
        elsewhere(workdir)
        time.sleep(0.3)
        with pytest.raises(LockError, match=r"process \d+ on node7 has taken over, for this run"):
            own.check()
    assert json.loads((workdir / lock.FILE).read_text())["token"] == "its"


@pytest.mark.parametrize(
    "text",
    parts.quick(["{", "[" * 10**5], ["", "{", "[]", "{}", '"held"', "[" * 10**5, "\0" * 99]),
)
def test_a_lock_file_that_says_nothing_is_somebodys(workdir, quick, text):
    """It may be of another version, or be seen half-written; a crash leaves zeros for ever."""
    workdir.mkdir()
    (workdir / lock.FILE).write_text(text)
    with pytest.raises(LockError, match="process unknown on unknown, since unknown"):
        lock.hold(workdir, None).__enter__()
    lines = []
    dead = lock.dead_owner(workdir, said(lines))
    assert "is locked by process unknown on unknown; waiting" in lines[0]
    with lock.hold(workdir, dead):
        pass
    assert os.listdir(workdir) == []


def test_a_lock_file_that_says_nothing_but_changes_is_a_living_owners(workdir, quick):
    workdir.mkdir()
    (workdir / lock.FILE).write_text("{")
    change = threading.Timer(0.2, (workdir / lock.FILE).write_text, ["{ "])
    change.start()
    with pytest.raises(LockError, match="another run is writing here"):
        lock.dead_owner(workdir, said([]))
    change.join()
    assert (workdir / lock.FILE).read_text() == "{ "


def test_a_lock_file_that_cannot_be_read_now_is_not_none(workdir):
    (workdir / lock.FILE).mkdir(parents=True)  # as a network drive would, it gives an error
    with pytest.raises(OSError, match=r"lock\.json"):
        lock.dead_owner(workdir, pytest.fail)
    with pytest.raises(OSError, match=r"lock\.json"):
        lock.hold(workdir, None).__enter__()
