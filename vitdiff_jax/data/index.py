"""What is known of each image of a folder or zip file, so that each is decoded once.

Kept in ~/.cache/vitdiff_jax/folders ($XDG_CACHE_HOME), beside the resized pixels. A file of another
size or time is read again; if its content is the same, what is known still holds.
"""

import contextlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import PIL

from vitdiff_jax.data import images, listing, marks, records
from vitdiff_jax.data.files import Folder, Zip
from vitdiff_jax.data.pipeline import DataError
from vitdiff_jax.runtime import pictures

LOG = logging.getLogger(__name__)


class Entry(NamedTuple):
    """What is known of a file.

    stamps: as in `Folder.files`. mark: of its content. reason: why it cannot be decoded, or None.
    width, height, grey, inks: of the image, None if unknown; inks: whether it is CMYK. count: of
    the pictures in the file, of which the first is read.
    """

    stamps: list[int]
    mark: str
    reason: str | None = None
    width: int | None = None
    height: int | None = None
    grey: bool | None = None
    inks: bool | None = None
    count: int = 1


class FileRecords:
    """Encoded images by index from a `Folder` or `Zip`, with their metadata."""

    def __init__(self, files: Folder | Zip, metadata: dict[str, images.Metadata], below: str = ""):
        self.files, self.metadata, self.names = files, metadata, list(metadata)
        self._below = below

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        name = self.names[index]
        return self.files.read(self._below + name), self.metadata[name] | {"index": index}


class _Examined(FileRecords):
    """Files that are read for the first time. unread: those of which the drive gives nothing."""

    def __init__(self, files: Folder | Zip, stamps: dict[str, list[int]]):
        super().__init__(files, {name: {} for name in stamps})
        self.stamps, self.unread, self.most = stamps, set(), len(stamps)
        self.entries: dict[str, Entry] = {}

    def __getitem__(self, index):
        name = self.names[index]
        try:
            found = super().__getitem__(index)
        except OSError as error:
            self.unread.add(name)
            if len(self.unread) > self.most:  # each takes its time
                raise DataError(
                    f"{self.files.path}: {len(self.unread)} files cannot be read, last"
                    f" {listing.shown(name)}: {error}; is the drive there?"
                ) from error
            raise
        except ValueError:  # damaged in a zip file, or too large
            self.entries[name] = Entry(self.stamps[name], marks.digest(self.stamps[name]))
            raise
        data = found[0]
        size = listing.size_of(data) or (None, None, None, None)
        count = 1
        with contextlib.suppress(OSError, ValueError):  # damaged: decoding says how
            count = pictures.count(data)
        self.entries[name] = Entry(self.stamps[name], marks.of_bytes(data), None, *size, count)
        return found

    def why(self, name: str, reason: str) -> str:
        """The decoder's reason, or what the file is instead of an image."""
        if name in self.unread:
            return f"cannot be read now: {reason}"
        with contextlib.suppress(OSError, ValueError):
            return listing.why(self.files.read(name), reason)
        return reason


def examine(
    home: pathlib.Path, files: Folder | Zip, found: dict[str, list[int]],
    make: Callable[[Any], images.Images],
) -> tuple[dict[str, Entry], dict[str, str]]:  # fmt: skip
    """The entries of all images that can be used, and {name: reason} of the others.

    Only new or changed files are decoded, by the `Images` that `make` makes of their records. A
    file that cannot be read is left out, and tried again next time. Raises DataError if more than
    the fraction `max_broken` is left out.
    """
    path = home / "index.json"
    kept = _load(path)
    known = _still_known(files, found, kept)
    new = {name: stamps for name, stamps in found.items() if name not in known}
    records_, unread = _Examined(files, new), {}
    source = make(records_)
    records_.most = max(10, int(source.max_broken * len(found)))
    if new:
        reasons = records.scan(source, LOG.warning)
        broken = {records_.names[i]: reason for i, reason in reasons.items()}
        broken = {name: records_.why(name, reason) for name, reason in broken.items()}
        unread = {name: broken[name] for name in records_.unread if name in broken}
        known |= {
            name: entry._replace(reason=broken.get(name))
            for name, entry in records_.entries.items()
            if name not in unread
        }
    if known != kept:
        _save(path, known)
    bad = unread | {name: entry.reason for name, entry in known.items() if entry.reason is not None}
    bad = {name: bad[name] for name in found if name in bad}
    if len(bad) == len(found) or len(bad) > source.max_broken * len(found):
        first = "; ".join(f"{listing.shown(name)}: {bad[name]}" for name in list(bad)[:3])
        raise DataError(
            f"{source.name}: {len(bad)} of {len(found)} images cannot be decoded, first {first};"
            f" repair or remove them (config.data.max_broken={source.max_broken})"
        )
    return {name: known[name] for name in found if name not in bad}, bad


def _still_known(files, found: dict[str, list[int]], kept: dict[str, Entry]) -> dict[str, Entry]:
    """The kept entries that still hold: of the same stamps, or else of the same content."""
    known = {n: kept[n] for n, stamps in found.items() if n in kept and kept[n].stamps == stamps}
    touched = [
        name
        for name, stamps in found.items()
        if name in kept and name not in known
        if kept[name].stamps[0] == stamps[0] and kept[name].reason is None
    ]
    if isinstance(files, Zip) or not touched:
        return known

    def same(name):
        with contextlib.suppress(OSError):
            return marks.of_sample(files.path / name) == kept[name].mark
        return False

    with ThreadPoolExecutor(16) as pool:
        for name, equal in zip(touched, pool.map(same, touched)):
            if equal:
                known[name] = kept[name]._replace(stamps=found[name])
    return known


def home_of(root: pathlib.Path) -> pathlib.Path:
    """Where the index and caches of a folder are kept."""
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    root = root.resolve()
    known = [pictures.VERSION, PIL.__version__, Entry._fields]  # another Pillow may read more
    digest = marks.digest([str(root), *known])
    return base / "vitdiff_jax" / "folders" / f"{root.name}-{digest}"


def _load(path: pathlib.Path) -> dict[str, Entry]:
    """The entries as saved; none if the file is damaged."""
    try:
        known = {name: Entry(*about) for name, about in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return known if all(isinstance(entry.stamps, list) for entry in known.values()) else {}


def _save(path: pathlib.Path, known: dict[str, Entry]) -> None:
    """Write the index atomically."""
    partial = path.with_name(f"index.{os.getpid()}.partial")
    with writing(path):
        try:
            partial.write_text(json.dumps(known))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(home: pathlib.Path) -> Iterator[None]:
    """Hold the folder's lock: the first process does the work, the others find it done."""
    with writing(home):
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / "lock").open("w")
    with lock:
        with contextlib.suppress(ImportError, OSError):  # Windows; file systems without locks
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Turn an OSError, such as a full disk, into a DataError that says what to do."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written: {error.strerror or error}; free some space, or set"
            " XDG_CACHE_HOME to another folder"
        ) from error
