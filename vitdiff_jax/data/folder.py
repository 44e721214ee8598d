"""A folder or zip file of the user's own images; subfolders are classes.

Each new image is decoded once, so that broken ones are known before training; the result is kept in
~/.cache/vitdiff_jax/folders ($XDG_CACHE_HOME). The folder itself is never written to.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from vitdiff_jax.data import image_files, images, records, text
from vitdiff_jax.data.files import Folder, Zip, open_path
from vitdiff_jax.data.pipeline import DataError, Dataset
from vitdiff_jax.runtime import paths

LOG = logging.getLogger(__name__)


class FileRecords:
    """Encoded images by index from a `Folder` or `Zip`, with their metadata."""

    def __init__(self, files: Folder | Zip, metadata: Mapping[str, images.Metadata]):
        self.files, self.metadata, self.names = files, metadata, list(metadata)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        name = self.names[index]
        return self.files.read(name), self.metadata[name] | {"index": index}


def dataset(
    path: str = "",
    size: int = 256,
    channels: int = 3,
    classes: bool = True,
    captions: str | None = None,
    length: int = 128,
    heldout: float = 0.05,
    random_area: float = 0.0,
    flip: bool = True,
    cache: bool = False,
    max_broken: float = 0.05,
) -> Dataset:
    """The images in a folder or zip file.

    path: the folder or zip file. channels: 3 for colour, 1 for grey.
    classes: use the top-level subfolders as classes, where there are at least two.
    captions: a file in the folder, JSON lines or .csv, with the fields file_name and text, like
    Hugging Face's metadata.jsonl; an image with several lines has several captions.
    length: the maximum length of a caption in bytes. heldout: the approximate fraction held out.
    random_area, flip, cache, max_broken: see `imagenet`.
    """
    _check(path, channels, length, heldout)
    crop = images.make_crop(size, random_area, cache)
    root = paths.require_local(path, "path")
    files = open_path(root, "config.data.path")
    found = image_files.image_names(files)
    metadata, conditions = _metadata(files, list(found), classes, captions, length)
    make = functools.partial(
        images.Images, channels=channels, crop=crop, upright=True, max_broken=max_broken,
        annotate=functools.partial(_annotate, conditions), min_size=0 if random_area else 2 * size,
    )  # fmt: skip
    home = _home(root)
    with _locked(home):
        broken = _broken(home, found, make(FileRecords(files, metadata), name=str(root)))
    train, rest = _split([name for name in found if name not in broken], heldout)

    def part(title, names, flip=False):
        chosen, title = {name: metadata[name] for name in names}, f"{root} ({title})"
        source = make(FileRecords(files, chosen), name=title, flip=flip)
        if not cache:
            return source
        digest = _digest([name, found[name], metadata[name]] for name in names)
        cached = home / f"{digest}-{size}x{size}x{channels}"
        with _locked(home):
            if not (cached / "cache.json").is_file():
                LOG.warning("writing the resized images of %s to %s", title, cached)
                with _writing(cached):
                    records.write_cache(cached, source, LOG.warning)
        return make(records.CachedRecords(cached), name=title, flip=flip)

    counts = f"{len(train):,} images, {len(rest):,} held out, {len(broken):,} broken"
    return Dataset(
        part("train", train, flip), part("heldout", rest), (size, size, channels), conditions,
        f"{root} ({counts}), read from {'the cache' if cache else 'the files'}",
        f"centre to {size}x{size}",
    )  # fmt: skip


def _check(path: str, channels: int, length: int, heldout: float) -> None:
    """Refuse invalid options."""
    if not path:
        raise ValueError("path: set the folder, --config.data.path=FOLDER")
    if channels not in (1, 3):
        raise ValueError(f"channels: {channels} is neither 1 nor 3")
    if length < 4 or length % 4:
        raise ValueError(f"length: {length} is not a positive multiple of 4")
    if not 0 < heldout < 1:
        raise ValueError(f"heldout: {heldout} is not between 0 and 1")


def _home(root: pathlib.Path) -> pathlib.Path:
    """Where the index and cache of a folder are kept."""
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    root = root.resolve()
    return base / "vitdiff_jax" / "folders" / f"{root.name}-{_digest([str(root)])}"


def _digest(items: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(item).encode() + b"\n")
    return digest.hexdigest()[:12]


def _metadata(files, names, classes, captions, length) -> tuple[dict[str, images.Metadata], dict]:
    """The metadata of each image, and the conditions of the data set."""
    metadata: dict[str, images.Metadata] = {name: {} for name in names}
    conditions: dict[str, Any] = {}
    folders = sorted({name.partition("/")[0] for name in names if "/" in name})
    if classes and len(folders) > 1:
        stray = [name for name in names if "/" not in name]
        if stray:
            raise DataError(
                f"{files.path}: {stray[0]} is not in any of the class folders"
                f" {', '.join(folders[:3])}; move it into one, or use --config.data.classes=False"
            )
        conditions["label"] = tuple(folders)
        numbers = {folder: number for number, folder in enumerate(folders)}
        for name in names:
            metadata[name]["label"] = numbers[name.partition("/")[0]]
    if captions is not None:
        conditions["text"] = length
        texts = _captions(files, captions)
        for name in names:
            metadata[name]["captions"] = texts.get(_composed(name), [""])
        if not any(_composed(name) in texts for name in names):
            raise DataError(
                f"{files.path}: {captions} names none of the images, such as {names[0]}"
            )
    return metadata, conditions


def _captions(files, captions: str) -> dict[str, list[str]]:
    """{file name: captions} from a captions file."""
    try:
        data = files.read(captions)
    except (OSError, KeyError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{files.path}: cannot read the captions {captions}: {reason}") from error
    try:
        texts = text.read_captions(data, captions.lower().endswith(".csv"))
    except ValueError as error:
        raise DataError(
            f"{files.path}: {captions} must be JSON lines, or CSV if it ends in .csv, with the"
            f" fields file_name and text: {error}"
        ) from error
    return {_composed(name): captions for name, captions in texts.items()}


def _composed(name: str) -> str:
    """NFC form: macOS decomposes accents in file names, but typed captions are composed."""
    return unicodedata.normalize("NFC", name)


def _annotate(conditions, metadata, rng):
    """The conditions of one image, with a random one of its captions."""
    found = {}
    if "label" in conditions:
        found["label"] = np.array(metadata["label"], np.int32)
    if "text" in conditions:
        found["text"] = text.to_bytes(images.choose(metadata["captions"], rng), conditions["text"])
    return found


def _split(names: list[str], share: float) -> tuple[list[str], list[str]]:
    """(training, held-out) names, split by the hash of each, so that new images move no others.

    Each part has at least one image; a single image is in both.
    """
    hashes = {
        name: int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest())
        for name in names
    }
    order = sorted(names, key=lambda name: hashes[name])
    below = sum(value < share * 2**256 for value in hashes.values())
    count = max(1, min(below, len(names) - 1))
    return sorted(order[count:]) or names, sorted(order[:count])


def _broken(home, found: dict[str, list[int]], source: images.Images) -> dict[str, str]:
    """{name: reason} of images that cannot be decoded; only new or changed files are decoded."""
    names, path = list(found), home / "index.json"
    known = _index(path)
    new = [i for i, name in enumerate(names) if known.get(name, [])[:2] != found[name]]
    if new:
        source.good = np.array(new)
        reasons = records.scan(source, LOG.warning)
        fresh = {names[i]: [*found[names[i]], reasons.get(i)] for i in new}
        known = {name: known[name] for name in names if name not in fresh} | fresh
        _save(path, known)
    broken = {name: known[name][2] for name in names if known[name][2] is not None}
    if len(broken) == len(names) or len(broken) > source.max_broken * len(names):
        name, reason = next(iter(broken.items()))
        raise DataError(
            f"{source.name}: {len(broken)} of {len(names)} images cannot be decoded, first {name}:"
            f" {reason}; repair or remove them (config.data.max_broken={source.max_broken})"
        )
    return broken


def _index(path: pathlib.Path) -> dict[str, list]:
    """{name: [size, stamp, error or None]} as saved; empty if the file is damaged."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    valid = isinstance(known, dict) and all(
        isinstance(about, list) and len(about) == 3 for about in known.values()
    )
    return known if valid else {}


def _save(path: pathlib.Path, known: dict[str, list]) -> None:
    """Write the index atomically."""
    partial = path.with_name(f"index.{os.getpid()}.partial")
    with _writing(path):
        try:
            partial.write_text(json.dumps(known))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(home: pathlib.Path) -> Iterator[None]:
    """Hold the folder's lock: the first process does the work, the others find it done."""
    with _writing(home):
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / "lock").open("w")
    with lock:
        with contextlib.suppress(ImportError, OSError):  # Windows; file systems without locks
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    """Turn an OSError, such as a full disk, into a DataError that says what to do."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written: {error.strerror or error}; free some space, or set"
            " XDG_CACHE_HOME to another folder"
        ) from error
