"""A folder of the user's own images, or a zip file of one; sub-folders are classes.

Each image is decoded once, when it is first seen, so that broken ones are known before training;
what was found is kept in ~/.cache/vitdiff_jax/folders ($XDG_CACHE_HOME). The folder is only read.
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

from vitdiff_jax.data import images, pictures, records, text
from vitdiff_jax.data.files import Folder, Zip, open_path
from vitdiff_jax.data.pipeline import DataError, Dataset
from vitdiff_jax.runtime import paths

LOG = logging.getLogger(__name__)


class FileRecords:
    """Pictures by number from a `Folder` or `Zip`, with what is known of each."""

    def __init__(self, files: Folder | Zip, facts: Mapping[str, images.Facts]):
        self.files, self.facts, self.names = files, facts, list(facts)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        name = self.names[index]
        return self.files.read(name), self.facts[name] | {"index": index}


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
    classes: take the first sub-folders as classes, where there are at least two.
    captions: a file in the folder, JSON lines or .csv, with the fields file_name and text, as
    Hugging Face's metadata.jsonl; several lines of one file are several captions of it.
    length: the most bytes of a caption. heldout: about the share kept from training, by name.
    random_area, flip, cache, max_broken: see `imagenet`.
    """
    _check(path, channels, length, heldout)
    crop = images.crop_of(size, random_area, cache)
    root = paths.mounted(path, "path")
    files = open_path(root, "config.data.path")
    found = pictures.names_of(files)
    facts, conditions = _facts(files, list(found), classes, captions, length)
    make = functools.partial(
        images.Images, channels=channels, crop=crop, upright=True, max_broken=max_broken,
        annotate=functools.partial(_annotate, conditions), least=0 if random_area else 2 * size,
    )  # fmt: skip
    home = _home(root)
    with _alone(home):
        broken = _broken(home, found, make(FileRecords(files, facts), name=str(root)))
    train, rest = _split([name for name in found if name not in broken], heldout)

    def part(title, names, flip=False):
        chosen, title = {name: facts[name] for name in names}, f"{root} ({title})"
        whole = make(FileRecords(files, chosen), name=title, flip=flip)
        if not cache:
            return whole
        mark = _digest([name, found[name], facts[name]] for name in names)
        cached = home / f"{mark}-{size}x{size}x{channels}"
        with _alone(home):
            if not (cached / "cache.json").is_file():
                LOG.warning("writing the resized images of %s into %s", title, cached)
                with _writing(cached):
                    records.write_cache(cached, whole, LOG.warning)
        return make(records.CachedRecords(cached), name=title, flip=flip)

    counts = f"{len(train):,} images, {len(rest):,} held out, {len(broken):,} broken"
    return Dataset(
        part("train", train, flip), part("heldout", rest), (size, size, channels), conditions,
        f"{root} ({counts}) from {'its cache' if cache else 'the files'}",
        f"centre to {size}x{size}",
    )  # fmt: skip


def _check(path: str, channels: int, length: int, heldout: float) -> None:
    """Refuse options that are impossible."""
    if not path:
        raise ValueError("path: say which folder, --config.data.path=FOLDER")
    if channels not in (1, 3):
        raise ValueError(f"channels: {channels} is neither 1 nor 3")
    if length < 4 or length % 4:
        raise ValueError(f"length: {length} is not a multiple of 4 from 4 on")
    if not 0 < heldout < 1:
        raise ValueError(f"heldout: {heldout} is not between 0 and 1")


def _home(root: pathlib.Path) -> pathlib.Path:
    """Where what is known of a folder is kept."""
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    root = root.resolve()
    return base / "vitdiff_jax" / "folders" / f"{root.name}-{_digest([str(root)])}"


def _digest(items: Iterable[Any]) -> str:
    mark = hashlib.sha256()
    for item in items:
        mark.update(json.dumps(item).encode() + b"\n")
    return mark.hexdigest()[:12]


def _facts(files, names, classes, captions, length) -> tuple[dict[str, images.Facts], dict]:
    """What is known of each image, and the conditions that follow."""
    facts: dict[str, images.Facts] = {name: {} for name in names}
    conditions: dict[str, Any] = {}
    folders = sorted({name.partition("/")[0] for name in names if "/" in name})
    if classes and len(folders) > 1:
        stray = [name for name in names if "/" not in name]
        if stray:
            raise DataError(
                f"{files.path}: {stray[0]} lies beside the class folders {', '.join(folders[:3])};"
                " move it into one, or use --config.data.classes=False"
            )
        conditions["label"] = tuple(folders)
        numbers = {folder: number for number, folder in enumerate(folders)}
        for name in names:
            facts[name]["label"] = numbers[name.partition("/")[0]]
    if captions is not None:
        conditions["text"] = length
        texts = _captions(files, captions)
        for name in names:
            facts[name]["captions"] = texts.get(_composed(name), [""])
        if not any(_composed(name) in texts for name in names):
            raise DataError(
                f"{files.path}: {captions} names none of the images, such as {names[0]}"
            )
    return facts, conditions


def _captions(files, captions: str) -> dict[str, list[str]]:
    """{file name: its captions} of a captions file."""
    try:
        data = files.read(captions)
    except (OSError, KeyError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{files.path}: cannot read the captions {captions}: {reason}") from error
    try:
        texts = text.read_captions(data, captions.lower().endswith(".csv"))
    except ValueError as error:
        raise DataError(
            f"{files.path}: {captions} should be JSON lines, or CSV if it ends in .csv, with the"
            f" fields file_name and text: {error}"
        ) from error
    return {_composed(name): captions for name, captions in texts.items()}


def _composed(name: str) -> str:
    """Macs write an accent in a file's name as a letter of its own; who types captions does not."""
    return unicodedata.normalize("NFC", name)


def _annotate(conditions, facts, rng):
    """The conditions of one image; of several captions one at random."""
    found = {}
    if "label" in conditions:
        found["label"] = np.array(facts["label"], np.int32)
    if "text" in conditions:
        found["text"] = text.to_bytes(images.one_of(facts["captions"], rng), conditions["text"])
    return found


def _split(names: list[str], share: float) -> tuple[list[str], list[str]]:
    """Names to train on and held out: each by its own hash, so that new images move no others.

    Of few images at least one is in each part; a single one is in both.
    """
    marks = {
        name: int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest())
        for name in names
    }
    order = sorted(names, key=lambda name: marks[name])
    below = sum(mark < share * 2**256 for mark in marks.values())
    count = max(1, min(below, len(names) - 1))
    return sorted(order[count:]) or names, sorted(order[:count])


def _broken(home, found: dict[str, list[int]], whole: images.Images) -> dict[str, str]:
    """{name: reason} of the images that cannot be decoded; only new or changed ones are tried."""
    names, path = list(found), home / "index.json"
    known = _index(path)
    new = [i for i, name in enumerate(names) if known.get(name, [])[:2] != found[name]]
    if new:
        whole.good = np.array(new)
        reasons = records.scan(whole, LOG.warning)
        fresh = {names[i]: [*found[names[i]], reasons.get(i)] for i in new}
        known = {name: known[name] for name in names if name not in fresh} | fresh
        _save(path, known)
    broken = {name: known[name][2] for name in names if known[name][2] is not None}
    if len(broken) == len(names) or len(broken) > whole.max_broken * len(names):
        name, reason = next(iter(broken.items()))
        raise DataError(
            f"{whole.name}: {len(broken)} of {len(names)} images cannot be decoded, the first one:"
            f" {name}, {reason}; repair or remove them (config.data.max_broken={whole.max_broken})"
        )
    return broken


def _index(path: pathlib.Path) -> dict[str, list]:
    """{name: [size, change, None or why it is broken]} as saved; empty if that is damaged."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    whole = isinstance(known, dict) and all(
        isinstance(about, list) and len(about) == 3 for about in known.values()
    )
    return known if whole else {}


def _save(path: pathlib.Path, known: dict[str, list]) -> None:
    """Write the index, whole or not at all."""
    partial = path.with_name(f"index.{os.getpid()}.partial")
    with _writing(path):
        try:
            partial.write_text(json.dumps(known))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(home: pathlib.Path) -> Iterator[None]:
    """One process after the other: the first makes what the others find."""
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
    """Say what a full disk means."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written: {error.strerror or error}; make room there, or name"
            " another place in XDG_CACHE_HOME"
        ) from error
