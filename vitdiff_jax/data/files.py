"""The files of a folder or zip file, read in place: nothing is unpacked or written."""

import os
import pathlib
import zipfile

from vitdiff_jax.data.pipeline import DataError

MAX_BYTES = 2**30  # per file


class Folder:
    """The files of a folder: their names, a stamp that detects changes, and their contents."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def files(self) -> dict[str, list[int]]:
        """{name relative to the folder: [size, modification time]}, without hidden files.

        Links are followed, except to a folder that contains the link.
        """
        found: dict[str, list[int]] = {}
        parents: dict[str, frozenset[str]] = {}  # real paths of a folder and those above it
        for home, folders, names in os.walk(self.path, onerror=_raise, followlinks=True):
            real, above = os.path.realpath(home), parents.get(os.path.dirname(home), frozenset())
            if real in above:
                folders.clear()
                continue
            parents[home] = above | {real}
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                path = pathlib.Path(home, name)
                if not name.startswith(".") and path.is_file():
                    stat = path.stat()
                    relative = path.relative_to(self.path).as_posix()
                    found[relative] = [stat.st_size, stat.st_mtime_ns]
        return found

    def read(self, name: str) -> bytes:
        _check_size((self.path / name).stat().st_size)
        return (self.path / name).read_bytes()


class Zip:
    """The same for a zip file."""

    def __init__(self, path: pathlib.Path):
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{path}: not a readable zip file: {error}") from error
        self.path = path

    def files(self) -> dict[str, list[int]]:
        """{name: [size, checksum]}, without hidden files."""
        found = {}
        for member in self._zip.infolist():
            parts = pathlib.PurePosixPath(member.filename.replace("\\", "/")).parts
            if member.filename.startswith(("/", "\\")) or ".." in parts:
                raise DataError(
                    f"{self.path}: contains a file named {member.filename!r}, which lies outside of"
                    " the archive; do not use this zip file"
                )
            if not member.is_dir() and not any(p.startswith((".", "__MACOSX")) for p in parts):
                found[member.filename] = [member.file_size, member.CRC]
        return found

    def read(self, name: str) -> bytes:
        size = self._zip.getinfo(name).file_size
        _check_size(size)
        try:
            with self._zip.open(name) as file:
                return file.read(size)  # no more than declared
        except (OSError, MemoryError):
            raise
        except Exception as error:  # of zipfile or of one of the compression libraries
            raise ValueError(str(error)) from error


def open_path(path: pathlib.Path, key: str) -> Folder | Zip:
    """The files of a folder or zip file; key: the option that names it, for errors."""
    if not path.exists():
        raise DataError(f"{path}: no such folder or zip file ({key})")
    return Folder(path) if path.is_dir() else Zip(path)


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES:,} bytes")


def _raise(error: OSError) -> None:
    """For os.walk, which would skip unreadable folders, and with them a class."""
    raise error
