"""The files of a folder or a zip file, read where they lie: nothing is unpacked or written."""

import os
import pathlib
import zipfile

from vitdiff_jax.data.pipeline import DataError

MOST_BYTES = 2**30  # of one file


class Folder:
    """The files below a folder: their names, what tells that one has changed, and their bytes."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def files(self) -> dict[str, list[int]]:
        """{name relative to the folder: [size, time of change]}, hidden ones left out.

        Links are followed, except to a folder that the link itself lies in.
        """
        found: dict[str, list[int]] = {}
        above: dict[str, frozenset[str]] = {}  # where a folder and those around it really lie
        for home, folders, names in os.walk(self.path, onerror=_stop, followlinks=True):
            place, around = os.path.realpath(home), above.get(os.path.dirname(home), frozenset())
            if place in around:
                folders.clear()
                continue
            above[home] = around | {place}
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                path = pathlib.Path(home, name)
                if not name.startswith(".") and path.is_file():
                    about = path.stat()
                    relative = path.relative_to(self.path).as_posix()
                    found[relative] = [about.st_size, about.st_mtime_ns]
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
            raise DataError(f"{path}: not a zip file that can be read: {error}") from error
        self.path = path

    def files(self) -> dict[str, list[int]]:
        """{name: [size, checksum]}, hidden ones left out."""
        found = {}
        for member in self._zip.infolist():
            parts = pathlib.PurePosixPath(member.filename.replace("\\", "/")).parts
            if member.filename.startswith(("/", "\\")) or ".." in parts:
                raise DataError(
                    f"{self.path}: has a file called {member.filename!r}, which lies outside of it;"
                    " do not use this zip file"
                )
            if not member.is_dir() and not any(p.startswith((".", "__MACOSX")) for p in parts):
                found[member.filename] = [member.file_size, member.CRC]
        return found

    def read(self, name: str) -> bytes:
        size = self._zip.getinfo(name).file_size
        _check_size(size)
        try:
            with self._zip.open(name) as file:
                return file.read(size)  # not more, whatever it would unpack to
        except (OSError, MemoryError):
            raise
        except Exception as error:  # zipfile's own, and those of each way of packing
            raise ValueError(str(error)) from error


def open_path(path: pathlib.Path, key: str) -> Folder | Zip:
    """The files of a folder or of a zip file; key: what named it, for the error."""
    if not path.exists():
        raise DataError(f"{path}: there is no such folder or zip file ({key})")
    return Folder(path) if path.is_dir() else Zip(path)


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES:,} bytes")


def _stop(error: OSError) -> None:
    """For os.walk, which leaves out folders that it cannot read: a class would be missing."""
    raise error
