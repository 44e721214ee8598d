"""Where files lie: in folders of this machine, or in buckets: gs:// of Google, s3:// of Amazon.

`epath.Path` is used as pathlib's is, in both places; where a `pathlib.Path` is asked for, it is of
this machine. A bucket has no folders, no renaming and no appending: an object is written whole.
"""

import importlib.util
import os
import pathlib
import tempfile
import time
from typing import Any, TypeVar

from etils import epath

Given = str | os.PathLike[str]
Path = TypeVar("Path", bound=pathlib.Path | epath.Path)
BUCKETS = {  # how their addresses begin -> what fsspec reaches them by, and the extra with it
    "gs://": ("gcsfs", "gcs"),
    "s3://": ("s3fs", "s3"),
    "az://": ("adlfs", "az"),
}
SECONDS = 60
"""How often what is appended goes into a bucket, at least, unless that takes 1 % of the time."""
if any(importlib.util.find_spec(package) for package, _ in BUCKETS.values()):
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
    kind, rest = text[: text.index("://") + 3], text.partition("://")[2]
    if kind not in BUCKETS:
        raise OSError(f"{text}: only {', '.join(BUCKETS)} and folders are known; mount it as one")
    package, extra = BUCKETS[kind]
    if importlib.util.find_spec(package) is None:
        raise OSError(f'{text}: to reach such buckets: pip install "vitdiff_jax[{extra}]"')
    bucket = rest.partition("/")[0]
    try:
        _list_one(_files(text), bucket)
    except FileNotFoundError as error:
        raise OSError(f"{text}: there is no bucket {bucket}") from error
    except Exception as error:  # of fsspec's packages, of authentication, of the network
        line = " ".join(str(error).split())[:300] or type(error).__name__
        raise OSError(f"{text}: cannot be reached: {line}") from error
    return epath.Path(text)


def _files(path: Given) -> Any:
    """What fsspec reaches a remote path by, without lists that are kept."""
    import fsspec.config

    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it asks for more rights
    for name in ("gcs", "s3", "az"):  # others write too: a list that was kept would not know
        fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
    return fsspec.filesystem(os.fspath(path).partition("://")[0])


def _list_one(files: Any, bucket: str) -> None:
    """Ask for one object of a bucket; a bucket may have millions."""
    if "gs" in files.protocol:
        files.call("GET", "b/{}/o", bucket, maxResults=1)
    elif "s3" in files.protocol:
        files.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
    else:
        files.ls(bucket)  # adlfs has nothing shorter


def local(path: Given) -> pathlib.Path:
    """A path of this machine with the same files: that path, or a copy of what is in a bucket."""
    if not remote(path):
        return pathlib.Path(path)
    source = reached(path)
    if not source.exists():
        raise OSError(f"{source}: there is no such object or folder")
    _COPIES.append(tempfile.TemporaryDirectory(prefix="vitdiff_jax-"))
    copy = pathlib.Path(_COPIES[-1].name, str(source).partition("://")[2])
    fetch(source, copy)
    return copy


def fetch(source: epath.Path, copy: Given) -> None:
    """Copy an object, or all that lies below a path, out of a bucket."""
    files = _files(source)
    files.get(str(source), os.fspath(copy), recursive=files.isdir(str(source)))


def send(file: Given, target: epath.Path) -> None:
    """Copy a file into a bucket."""
    _files(target).put_file(os.fspath(file), str(target))


def move(source: Path, target: Path) -> None:
    """Rename a folder; in a bucket it is copied, then deleted."""
    if not remote(source):
        source.rename(target)
        return
    files = _files(source)  # whose own `mv` asks S3 for the folder itself, which is no object
    files.copy(str(source), str(target), recursive=True)
    files.rm(str(source), recursive=True)


def mounted(path: Given, key: str) -> pathlib.Path:
    """A path of this machine, of data. Raises ValueError for others; key: what named it."""
    if remote(path):
        raise ValueError(
            f"{key}: {path}: training reads in random order, which a bucket is too slow for; mount"
            " it as a folder (gcsfuse, mountpoint-s3) and give that"
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
