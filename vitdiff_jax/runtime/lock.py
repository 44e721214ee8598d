"""One writer per workdir: a lock file that names its owner, and that dies with it.

`lock.json` holds the host, the process and the time. On the owner's own machine the process table
says whether it lives: what a `kill -9` leaves is taken over at once. From elsewhere (another node,
a container, a bucket) its pulse says so: the owner renews the lock every `BEAT` seconds, and one
that is not renewed for `STALE` seconds is taken over. No clocks are compared. Readers need no lock.
"""

import contextlib
import datetime
import errno
import json
import os
import pathlib
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from vitdiff_jax.runtime import paths

FILE = "lock.json"
BEAT = 10
"""Seconds between two renewals."""
STALE = 60
"""Seconds without a renewal after which an owner that cannot be seen is taken for dead."""
TRIES = 100
"""To create a workdir while others remove theirs."""
Owner = dict[str, Any]
_OWN: set[str] = set()  # tokens of the locks of this process


class LockError(RuntimeError):
    """A workdir that another run is writing to; the message is one line."""


class Lock:
    """The lock of a workdir, see `hold`."""

    def __init__(self, workdir: epath.Path):
        self.workdir, self.token = workdir, secrets.token_hex(8)
        self.made = False  # whether this run has created the workdir, or the dead one before it
        self._parents: set[epath.Path] = set()  # those created with it
        self._writing, self._released = threading.Lock(), threading.Event()

    def acquire(self, dead: str | None) -> None:
        """Take the lock; LockError if it has another owner than `dead`, see `dead_owner`."""
        for left in reversed(range(TRIES)):
            try:
                self._create()
                with _alone(self.workdir):
                    self._take(dead)
                break
            except FileNotFoundError:  # the owner before has just removed its workdir
                if not left:
                    raise
        if paths.remote(self.workdir):  # where nothing is exclusive: the last of several has it
            time.sleep(1)
        self.check()
        _OWN.add(self.token)
        threading.Thread(target=self._renew, daemon=True).start()

    def _create(self) -> None:
        """Create the workdir if it is missing, by a rename: with the lock in it from the start.

        So none of several runs that start at once finds an empty one, which is the user's.
        """
        if paths.remote(self.workdir):
            self.workdir.mkdir(parents=True, exist_ok=True)
        if self.workdir.is_dir():
            return
        self._parents |= {folder for folder in self.workdir.parents if not folder.exists()}
        self.workdir.parent.mkdir(parents=True, exist_ok=True)
        self.made, new = True, self.workdir.with_name(f".{self.token}.partial")
        try:
            new.mkdir()
            self._write(new)
            os.rename(new, self.workdir)
        except OSError as error:
            self.made = False
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT):
                self.workdir.mkdir()  # no folder can be renamed here, or this says what is wrong
                self.made = True
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _take(self, dead: str | None) -> None:
        owner = read(self.workdir)
        if owner is not None and owner["token"] not in (dead, self.token):
            raise LockError(_refusal(self.workdir, owner))
        self.made |= owner is not None and bool(owner.get("made"))
        self._write(self.workdir)

    def check(self) -> None:
        """Raise LockError if another run has taken over, having seen no sign of this one."""
        try:
            owner = read(self.workdir)
        except OSError:
            return  # a network drive that gives nothing now is no other owner
        if owner is None or owner["token"] != self.token:
            raise LockError(
                f"{self.workdir}: {_named(owner) if owner else 'somebody'} has taken over, for this"
                f" run did not renew {FILE} in {STALE} s; it stops here, and saves nothing more"
            )

    def release(self) -> None:
        """Give the lock back, if it is still this run's; folders that it made go if empty."""
        self._released.set()
        _OWN.discard(self.token)
        with self._writing, contextlib.suppress(OSError), _alone(self.workdir):
            owner = read(self.workdir)  # OSError: whose it is cannot be seen, so it stays
            if owner is not None and owner["token"] == self.token:
                (self.workdir / FILE).unlink()
            if self.made:
                paths.remove_empty(self.workdir)
        for folder in sorted(self._parents, reverse=True):
            paths.remove_empty(folder)

    def _write(self, folder: epath.Path) -> None:
        about = {"token": self.token, "renewed": time.time(), "made": self.made}
        paths.write(folder / FILE, (json.dumps(_this() | about) + "\n").encode())

    def _renew(self) -> None:
        while not self._released.wait(BEAT):
            with self._writing, contextlib.suppress(Exception):  # a full disk, an absent bucket
                self.check()
                if not self._released.is_set():
                    self._write(self.workdir)


@contextlib.contextmanager
def hold(workdir: epath.Path, dead: str | None) -> Iterator[Lock]:
    """Hold the lock of a workdir, which is created; created folders that stay empty are removed.

    dead: the result of `dead_owner`. Raises LockError if there is a living owner.
    """
    lock = Lock(workdir)
    try:
        lock.acquire(dead)
        yield lock
    finally:
        lock.release()


def dead_owner(workdir: epath.Path, say: Callable[[str], None]) -> str | None:
    """The token of a dead run that owns the workdir; None: nobody does. LockError if it lives."""
    owner = read(workdir)
    if owner is None:
        return None
    alive = lives(owner)
    if alive is False:
        return owner["token"]
    if alive:
        raise LockError(_refusal(workdir, owner))
    say(f"{workdir} is locked by {_named(owner)}; waiting up to {STALE} s for a sign of its life")
    end = time.monotonic() + STALE
    while time.monotonic() < end:
        time.sleep(min(1, STALE / 10))
        try:
            now = read(workdir)
        except OSError:
            continue
        if now is None:
            return None
        if now != owner:
            raise LockError(_refusal(workdir, now))
    return owner["token"]


def read(workdir: epath.Path) -> Owner | None:
    """The owner in the lock file; None if there is none.

    A file that cannot be understood is of somebody unknown, who has it for as long as it changes.
    Raises OSError if it cannot be read now, which is no sign that there is none.
    """
    try:
        data = (workdir / FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(data)
        if isinstance(found, dict) and {"token", *_this()} <= set(found):
            return found
    return dict.fromkeys(_this(), "unknown") | {"token": data.decode(errors="replace")}


def lives(owner: Owner) -> bool | None:
    """Whether the owner is alive; None if that cannot be seen from here."""
    if owner["token"] in _OWN:
        return True
    if owner["machine"] != _machine() or sys.platform != "linux":
        return None
    if owner["process"] == os.getpid():  # of this process, but not given back
        return False
    return owner["started"] is not None and owner["started"] == _started(owner["process"])


def _this() -> Owner:
    """This process, for the lock file."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "host": socket.gethostname(), "process": os.getpid(), "since": f"{now:%Y-%m-%d %H:%M} UTC",
        "machine": _machine(), "started": _started(os.getpid()),
    }  # fmt: skip


def _machine() -> str:
    """Identifies the process table: containers of one machine have different ones."""
    with contextlib.suppress(OSError):
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _started(process: int) -> int | None:
    """When a process of this machine started, in clock ticks after boot; None if it is dead."""
    try:
        text = pathlib.Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # after the name, which may contain anything
    return None if fields[0] in "ZX" else int(fields[19])


@contextlib.contextmanager
def _alone(workdir: epath.Path) -> Iterator[None]:
    """Exclude the processes that look at and then write the lock at the same time.

    Raises FileNotFoundError if the workdir was removed meanwhile.
    """
    if paths.remote(workdir):
        yield
        return
    import fcntl  # not on Windows

    folder = os.open(workdir, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # file systems without flock
            fcntl.flock(folder, fcntl.LOCK_EX)
        if not os.path.samestat(os.fstat(folder), os.stat(workdir)):
            raise FileNotFoundError(f"{workdir}: another folder has taken its place")
        yield
    finally:
        os.close(folder)


def _named(owner: Owner) -> str:
    return f"process {owner['process']} on {owner['host']}"


def _refusal(workdir: epath.Path, owner: Owner) -> str:
    return (
        f"{workdir}: another run is writing here: {_named(owner)}, since {owner['since']}; wait"
        " for it, stop it, or use another --workdir"
    )
