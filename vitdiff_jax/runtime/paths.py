"""Paths in the local filesystem and in buckets: gs:// (Google), s3:// (Amazon), az:// (Azure).

An `epath.Path` may be either and is used like pathlib's; a `pathlib.Path` is always local. A bucket
has no folders, no renaming and no appending: objects are written in one piece.
"""

import contextlib
import importlib.util
import os
import pathlib
import re
import secrets
import tempfile
import time
from typing import Any, TypeVar

from etils import epath

PathLike = str | os.PathLike[str]
Path = TypeVar("Path", bound=pathlib.Path | epath.Path)
BUCKETS = {  # URL scheme -> the fsspec implementation, and the pip extra that installs it
    "gs://": ("gcsfs", "gcs"),
    "s3://": ("s3fs", "s3"),
    "az://": ("adlfs", "az"),
}
LEFT = re.compile(r"\.\d+-[0-9a-f]{8}\.partial$")
"""The end of the name of a file that `write` has not finished."""
OLD = 3600
"""Seconds after which such a file is what a killed process left: writing one takes far less."""
SECONDS = 60
"""Interval of uploads of appended files, longer where they would take over 1 % of the time."""
if any(importlib.util.find_spec(package) for package, _ in BUCKETS.values()):
    # Otherwise epath uses TensorFlow if installed; it decides at the first path that it sees.
    os.environ.setdefault("EPATH_USE_TF", "0")
_COPIES: list[tempfile.TemporaryDirectory] = []  # deleted when this process exits


def remote(path: PathLike) -> bool:
    """Whether a path is in a bucket."""
    return "://" in os.fspath(path)


def expanded(path: PathLike) -> str:
    """The path with a leading ~ or ~user as that home folder; --workdir=~/x reaches us as it is."""
    return os.path.expanduser(os.fspath(path))


def resolve(path: PathLike) -> epath.Path:
    """The path as an epath.Path; OSError if it is in a bucket that cannot be listed."""
    text = expanded(path)
    if not remote(text):
        return epath.Path(text)
    kind, rest = text[: text.index("://") + 3], text.partition("://")[2]
    if kind not in BUCKETS:
        raise OSError(f"{text}: only {', '.join(BUCKETS)} and local paths are supported; mount it")
    package, extra = BUCKETS[kind]
    if importlib.util.find_spec(package) is None:
        raise OSError(f'{text}: needs {package}: pip install "vitdiff_jax[{extra}]"')
    bucket = rest.partition("/")[0]
    try:
        _list_one(_files(text), bucket)
    except FileNotFoundError as error:
        raise OSError(f"{text}: there is no bucket {bucket}") from error
    except Exception as error:  # of the fsspec implementation, authentication or the network
        line = " ".join(str(error).split())[:300] or type(error).__name__
        raise OSError(f"{text}: cannot be accessed: {line}") from error
    return epath.Path(text)


def _files(path: PathLike) -> Any:
    """The fsspec filesystem of a remote path, without listings cache."""
    import fsspec.config

    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it needs more permissions
    for name in ("gcs", "s3", "az"):  # others write too: a cached listing would be stale
        fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
    return fsspec.filesystem(os.fspath(path).partition("://")[0])


def _list_one(files: Any, bucket: str) -> None:
    """List a single object of a bucket, which may have millions."""
    if "gs" in files.protocol:
        files.call("GET", "b/{}/o", bucket, maxResults=1)
    elif "s3" in files.protocol:
        files.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
    else:
        files.ls(bucket)  # adlfs has no limit


def local_copy(path: PathLike) -> pathlib.Path:
    """A local path with the same contents: the path itself, or a copy of what is in a bucket."""
    if not remote(path):
        return pathlib.Path(expanded(path))
    source = resolve(path)
    if not source.exists():
        raise OSError(f"{source}: there is no such object or folder")
    _COPIES.append(tempfile.TemporaryDirectory(prefix="vitdiff_jax-"))
    copy = pathlib.Path(_COPIES[-1].name, str(source).partition("://")[2])
    download(source, copy)
    return copy


def download(source: epath.Path, copy: PathLike) -> None:
    """Copy an object, or everything below a path, from a bucket."""
    files = _files(source)
    files.get(str(source), os.fspath(copy), recursive=files.isdir(str(source)))


def upload(file: PathLike, target: epath.Path) -> None:
    """Upload a file to a bucket."""
    _files(target).put_file(os.fspath(file), str(target))


def move(source: Path, target: Path) -> None:
    """Rename a folder; in a bucket: copy, then delete."""
    if not remote(source):
        source.rename(target)
        return
    files = _files(source)  # its own `mv` requests the folder itself, which is no object in S3
    files.copy(str(source), str(target), recursive=True)
    files.rm(str(source), recursive=True)


def require_local(path: PathLike, key: str) -> pathlib.Path:
    """A local path to data; ValueError if it is in a bucket. key: names it in the message."""
    if remote(path):
        raise ValueError(
            f"{key}: {path}: training reads in random order, for which a bucket is too slow; mount"
            " it as a folder (gcsfuse, mountpoint-s3) and give that path"
        )
    return pathlib.Path(expanded(path))


def partial_path(path: Path) -> Path:
    """The name of a file or folder until it is complete, where its one writer resumes it."""
    return path.with_name(path.name + ".partial")


def write(path: pathlib.Path | epath.Path, data: bytes) -> None:
    """Write a file whole or not at all, whatever else writes it; the last writer's data stay.

    On disk before it has its name: a power failure leaves the old file or the new one.
    """
    if remote(path):
        path.write_bytes(data)
        return
    # Not `partial_path`, which two processes or threads would share.
    own = f"{os.getpid()}-{secrets.token_hex(4)}.partial"
    partial = path.with_name(f".{own}")  # not longer than what the file system allows
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def clean(folder: pathlib.Path | epath.Path) -> None:
    """Delete what killed processes left half written in a local folder, see `write`."""
    if remote(folder) or not folder.is_dir():
        return
    for path in pathlib.Path(folder).iterdir():
        with contextlib.suppress(OSError):  # another process cleans too
            if LEFT.search(path.name) and time.time() - path.stat().st_mtime > OLD:
                path.unlink()


def remove_empty(folder: pathlib.Path | epath.Path) -> None:
    """Delete a local folder if there is nothing in it, unless it is the current one."""
    if not remote(folder):
        with contextlib.suppress(OSError):
            if not os.path.samefile(folder, os.curdir):
                pathlib.Path(folder).rmdir()


class Spool:
    """A local folder for appending to files that belong in `home`.

    It is `home` itself or, if that is in a bucket, a temporary folder that `upload` copies from.
    """

    def __init__(self, home: pathlib.Path | epath.Path):
        self.home, self.folder = home, pathlib.Path(home)
        self._temporary, self._sent, self._next = None, {}, time.monotonic() + SECONDS
        if remote(home):
            self._temporary = tempfile.TemporaryDirectory(prefix="vitdiff_jax-")
            self.folder = pathlib.Path(self._temporary.name)

    @property
    def due(self) -> bool:
        """Whether it is time to `upload`."""
        return self._temporary is not None and time.monotonic() > self._next

    def upload(self) -> None:
        """Upload the files that have changed since the last time."""
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
