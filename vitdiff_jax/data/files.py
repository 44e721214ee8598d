"""The files of a folder or zip file, read in place: nothing is unpacked or written."""

import contextlib
import errno
import json
import os
import pathlib
import time
import zipfile
from collections.abc import Iterator

from vitdiff_jax.data.pipeline import DataError

MAX_BYTES = 2**30  # per file
RUBBISH = {
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found",
    "thumbs.db", "ehthumbs.db", "desktop.ini",
}  # fmt: skip
"""What systems leave in folders, besides names with a leading dot."""
HIDDEN, RUNS = "hidden", "made by runs of vitdiff_jax"
NO_FILES, EMPTY = "no files, such as broken links", "empty folders"
"""Reasons for which files are left out."""
OF_RUNS = ("samples", "restored", "evaluation", "checkpoints", "profile", "statistics")
"""What a run writes into its workdir: folders, and a picture; also with a digest appended."""
WAITS = (0.0, 0.1)
"""Seconds until a failed read is tried again, as network drives need it now and then."""


class Folder:
    """The files of a folder: their names, stamps that detect changes, and their contents.

    left_out: the names of files and folders that `files` leaves out, by reason.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.left_out: dict[str, list[str]] = {}

    def files(self) -> dict[str, list[int]]:
        """{name relative to the folder: [size, modification time, change time, inode]}.

        Without hidden files, and without workdirs of runs, whose own sheets are no data. Links are
        followed, except to a folder that contains the link.
        """
        found: dict[str, list[int]] = {}
        self.left_out = {}
        todo: list[tuple[str, frozenset[str]]] = [("", frozenset())]  # and real paths above it
        while todo:
            prefix, above = todo.pop()
            home = str(self.path / prefix)
            real = os.path.realpath(home)
            if real in above:
                continue
            with os.scandir(home) as opened:
                entries = sorted(opened, key=lambda entry: entry.name)
            if not entries and prefix:
                self._leave_out(EMPTY, prefix)
            of_run = any(e.name == "config.json" and self._of_run(prefix) for e in entries)
            if of_run and prefix:
                self._leave_out(RUNS, prefix)
                continue
            for entry in entries:
                name = prefix + entry.name
                if _hidden(entry.name):
                    self._leave_out(HIDDEN, name)
                elif of_run and _made_by_run(entry.name):
                    self._leave_out(RUNS, f"{name}/" if entry.is_dir() else name)
                elif entry.is_dir():
                    todo.append((f"{name}/", above | {real}))
                elif entry.is_file():
                    stat = entry.stat()
                    # Of change too: exiftool -P and the like write in place and keep the time.
                    times = stat.st_mtime_ns, stat.st_ctime_ns
                    found[name] = [stat.st_size, *times, stat.st_ino]
                else:
                    self._leave_out(NO_FILES, name)
        return found

    def _of_run(self, prefix: str) -> bool:
        try:
            return _is_run((self.path / prefix / "config.json").read_bytes())
        except OSError:
            return False

    def _leave_out(self, reason: str, name: str) -> None:
        self.left_out.setdefault(reason, []).append(name)

    def read(self, name: str) -> bytes:
        """The content of a file. An OSError is raised only if it stays when tried again."""
        _check_size((self.path / name).stat().st_size)
        for wait in WAITS:
            try:
                return self._read(name)
            except (FileNotFoundError, PermissionError):
                raise
            except OSError:
                time.sleep(wait)
        return self._read(name)

    def _read(self, name: str) -> bytes:
        data, size = (self.path / name).read_bytes(), (self.path / name).stat().st_size
        if len(data) != size:  # cut off by a network drive, or still being written
            raise OSError(errno.EIO, f"{len(data):,} of {size:,} bytes could be read")
        return data

    def head(self, name: str, count: int) -> bytes:
        """The first bytes of a file."""
        with (self.path / name).open("rb") as file:
            return file.read(count)


class Zip:
    """The same for a zip file."""

    def __init__(self, path: pathlib.Path):
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{path}: not a readable zip file: {error}") from error
        self.path = path
        self.left_out: dict[str, list[str]] = {}
        self._members: dict[str, zipfile.ZipInfo] = {}

    def files(self) -> dict[str, list[int]]:
        """{name: [size, checksum]}, without hidden files, and without what runs have made.

        Windows' backslashes part folders too.
        """
        self._members, self.left_out, empty = {}, {}, []
        for name, member in self._named():
            if any(map(_hidden, name.rstrip("/").split("/"))):
                self.left_out.setdefault(HIDDEN, []).append(name)
            elif name.endswith("/"):
                empty.append(name)
            elif name in self._members and self._members[name].filename != member.filename:
                names = self._members[name].filename, member.filename
                raise DataError(f"{self.path}: contains both {names[0]!r} and {names[1]!r}")
            else:  # of several with one name the last, as everywhere
                self._members[name] = member
        full = {f"{folder}/" for name, _ in self._named() for folder in _folders_of(name)}
        if left := [name for name in empty if name not in full]:
            self.left_out[EMPTY] = left
        if made := self._made_by_runs():
            self.left_out[RUNS] = list(made)
        return {n: [m.file_size, m.CRC] for n, m in self._members.items() if n not in made}

    def _made_by_runs(self) -> dict[str, None]:
        """The files in the output folders of workdirs."""
        configs = [name for name in self._members if name.rpartition("/")[2] == "config.json"]
        homes = []
        for name in configs:
            with contextlib.suppress(OSError, ValueError):
                if _is_run(self.read(name)):
                    homes.append(name.removesuffix("config.json"))
        return {
            name: None
            for name in self._members
            if any(name.startswith(h) and _made_by_run(name[len(h) :]) for h in homes)
        }

    def _named(self) -> Iterator[tuple[str, zipfile.ZipInfo]]:
        """The files in it. Raises DataError for those that lie outside of it."""
        for member in self._zip.infolist():
            name = member.filename.replace("\\", "/")
            parts = pathlib.PurePosixPath(name).parts
            if name.startswith("/") or ".." in parts:
                raise DataError(
                    f"{self.path}: contains a file named {member.filename!r}, which lies outside of"
                    " the archive; do not use this zip file"
                )
            if parts:
                yield "/".join(parts) + "/" * name.endswith("/"), member

    def read(self, name: str) -> bytes:
        size = self._member(name).file_size
        _check_size(size)
        return self.head(name, size)  # no more than declared

    def head(self, name: str, count: int) -> bytes:
        try:
            with self._zip.open(self._member(name).filename) as file:
                return file.read(count)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # of zipfile or of one of the compression libraries
            raise ValueError(str(error)) from error

    def _member(self, name: str) -> zipfile.ZipInfo:
        if not self._members:
            self.files()
        return self._members[name]


def open_path(path: pathlib.Path, key: str) -> Folder | Zip:
    """The files of a folder or zip file; key: the option that names it, for errors."""
    if not path.exists():
        raise DataError(f"{path}: no such folder or zip file ({key})")
    return Folder(path) if path.is_dir() else Zip(path)


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES:,} bytes")


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in RUBBISH


def _folders_of(name: str) -> Iterator[str]:
    """The folders that a file or folder lies in."""
    parts = name.rstrip("/").split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts)))


def _made_by_run(name: str) -> bool:
    """Whether a file or folder of this name in a workdir is what a run writes."""
    return name.partition("/")[0].partition("-")[0].removesuffix(".png") in OF_RUNS


def _is_run(data: bytes) -> bool:
    """Whether a config.json is that of a workdir."""
    try:
        config = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(config, dict) and {"data", "model", "diffusion", "train"} <= config.keys()
