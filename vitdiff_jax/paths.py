"""Where files lie: in folders of this machine, or in a bucket of Google Cloud Storage, gs://...

`epath.Path` is used as pathlib's is, in both places; where a `pathlib.Path` is asked for, it is of
this machine. A bucket has no folders, no renaming and no appending: an object is written whole.
"""

import importlib.util
import os
import pathlib
import tempfile
import time
from typing import TypeVar

from etils import epath

Given = str | os.PathLike[str]
Path = TypeVar("Path", bound=pathlib.Path | epath.Path)
BUCKET = "gs://"
SECONDS = 60
"""How often what is appended goes into a bucket, at least, unless that takes 1 % of the time."""
if importlib.util.find_spec("gcsfs"):
    # Else epath takes TensorFlow where there is one; it decides at the first path that it sees.
    os.environ.setdefault("EPATH_USE_TF", "0")
_COPIES: list[tempfile.TemporaryDirectory] = []  # they go with this process


def remote(path: Given) -> bool:
    """Whether a path is not one of this machine."""
    return "://" in os.fspath(path)


def reached(path: Given) -> epath.Path:
    """A path whose bucket, if it lies in one, is there and may be listed. Raises OSError if not."""
    if not remote(path):
        return epath.Path(path)
    text = os.fspath(path)
    if not text.startswith(BUCKET):
        raise OSError(f"{text}: only {BUCKET} and folders are known; mount it as a folder")
    if importlib.util.find_spec("gcsfs") is None:
        raise OSError(f'{text}: to reach buckets: pip install "vitdiff_jax[gcs]"')
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it asks for more rights
    import fsspec.config

    # Orbax and other processes write too: a list that was kept would not know of it.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    bucket = text.removeprefix(BUCKET).partition("/")[0]
    try:
        fsspec.filesystem("gcs").call("GET", "b/{}/o", bucket, maxResults=1)  # type: ignore
    except FileNotFoundError as error:
        raise OSError(f"{text}: there is no bucket {bucket}") from error
    except Exception as error:  # of gcsfs, of Google's authentication, of the network
        line = " ".join(str(error).split())[:300] or type(error).__name__
        raise OSError(f"{text}: cannot be reached: {line}") from error
    return epath.Path(text)


def local(path: Given) -> pathlib.Path:
    """A path of this machine with the same files: that path, or a copy of what is in a bucket."""
    if not remote(path):
        return pathlib.Path(path)
    source = reached(path)
    import fsspec

    files = fsspec.filesystem("gcs")
    if not files.exists(str(source)):
        raise OSError(f"{source}: there is no such object or folder")
    _COPIES.append(tempfile.TemporaryDirectory(prefix="vitdiff_jax-"))
    copy = pathlib.Path(_COPIES[-1].name, str(source).removeprefix(BUCKET))
    files.get(str(source), str(copy), recursive=files.isdir(str(source)))
    return copy


def mounted(path: Given, key: str) -> pathlib.Path:
    """A path of this machine, of data. Raises ValueError for others; key: what named it."""
    if remote(path):
        raise ValueError(
            f"{key}: {path}: training reads in random order, which a bucket is too slow for; mount"
            " it (gcsfuse BUCKET FOLDER) and give the folder"
        )
    return pathlib.Path(path).expanduser()


def partial_of(path: Path) -> Path:
    """Where a file, or a folder, is until it is whole."""
    return path.with_name(path.name + ".partial")


def write(path: pathlib.Path | epath.Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    if remote(path):
        path.write_bytes(data)
        return
    partial = partial_of(path)
    partial.write_bytes(data)
    partial.replace(path)


class Spool:
    """A folder of this machine to append in, for what belongs into `home`.

    It is `home` itself, or if that is in a bucket a temporary one, from which `send` copies.
    """

    def __init__(self, home: pathlib.Path | epath.Path):
        self.home, self.folder = home, pathlib.Path(home)
        self._temporary, self._sent, self._next = None, {}, time.monotonic() + SECONDS
        if remote(home):
            self._temporary = tempfile.TemporaryDirectory(prefix="vitdiff_jax-")
            self.folder = pathlib.Path(self._temporary.name)

    @property
    def due(self) -> bool:
        """Whether it is time to `send`."""
        return self._temporary is not None and time.monotonic() > self._next

    def send(self) -> None:
        """Copy the files that have changed since."""
        if self._temporary is None:
            return
        began = time.monotonic()
        for file in sorted(self.folder.rglob("*")):
            if file.is_file() and self._sent.get(file) != (about := file.stat().st_mtime_ns):
                (self.home / file.relative_to(self.folder).as_posix()).write_bytes(
                    file.read_bytes()
                )
                self._sent[file] = about
        now = time.monotonic()
        self._next = now + max(SECONDS, 100 * (now - began))
