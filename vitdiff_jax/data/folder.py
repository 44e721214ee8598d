"""A folder or zip file of the user's own images; subfolders are classes.

Each new image is decoded once, so that broken ones are known before training (`index`). The folder
itself is never written to.
"""

import functools
import hashlib
import logging
import pathlib
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitdiff_jax.data import card, images, index, listing, marks, records, text
from vitdiff_jax.data.files import EMPTY, Folder, Zip, open_path
from vitdiff_jax.data.pipeline import DataError, Dataset
from vitdiff_jax.runtime import paths, pictures

LOG = logging.getLogger(__name__)


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
    classes: use the top-level subfolders as classes, where there are at least two; a single folder
    around them is passed through.
    captions: a file in the folder, JSON lines or .csv, with the fields file_name and text, like
    Hugging Face's metadata.jsonl; an image with several lines has several captions.
    length: the maximum length of a caption in bytes. heldout: the approximate fraction held out.
    random_area, flip, cache, max_broken: see `imagenet`.
    """
    _check(path, channels, length, heldout)
    crop = images.make_crop(size, random_area, cache)
    root = paths.require_local(path, "path")
    files = open_path(root, "config.data.path")
    found = listing.images(files)
    below, warnings = _wrapper(list(found.found)) if classes else ("", [])
    names = [name.removeprefix(below) for name in found.found]
    metadata, conditions, about = _metadata(files, names, classes, captions, length, below)
    make = functools.partial(
        images.Images, channels=channels, crop=crop, upright=True, max_broken=max_broken,
        annotate=functools.partial(_annotate, conditions), min_size=0 if random_area else 2 * size,
    )  # fmt: skip
    home = index.home_of(root)
    with index.locked(home):
        scanned = functools.partial(make, name=str(root))
        entries, broken = index.examine(home, files, found.found, scanned)
    entries = {name.removeprefix(below): entry for name, entry in entries.items()}
    labels = {name: metadata[name].get("label") for name in entries}
    train, rest, kept = _trainable(*_split(list(entries), heldout), labels)

    def part(title, names, flip=False):
        items = [[name, entries[name].mark, metadata[name]] for name in names]
        title, mark = f"{root} ({title})", functools.partial(_mark, items)
        known = functools.partial(make, name=title, flip=flip, mark=mark)
        source = known(index.FileRecords(files, {n: metadata[n] for n in names}, below))
        return known(_cached(home, items, shape, source)) if cache else source

    shape = size, size, channels
    parts = part("train", train, flip), part("heldout", rest)
    about |= {"warnings": [*warnings, *about["warnings"], *kept]}
    about |= card.of_folder(found, entries, broken)
    about = _card(found, below, about, conditions, entries, (train, rest), labels)
    counts = f"{len(train):,} images, {len(rest):,} held out, {len(broken):,} broken"
    return Dataset(
        *parts, shape, conditions,
        f"{root} ({counts}), read from {'the cache' if cache else 'the files'}",
        f"centre to {size}x{size}", marks.digest(part.mark(range(len(part))) for part in parts),
        about,
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


def _card(
    found: listing.Listing, below: str, about: dict[str, Any], conditions: Mapping[str, Any],
    entries: Mapping[str, index.Entry], parts: tuple[list[str], list[str]],
    labels: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The card with what the listing, the files and the classes say. parts: names of images."""
    warnings = [*card.warnings_of_listing(found, below), *about["warnings"]]
    warnings += card.warnings_of_files(entries, *parts, labels)
    if names := conditions.get("label"):
        counts = card.of_classes(names, *([labels[name] for name in part] for part in parts))
        about |= {"class_counts": counts}
        warnings += card.warnings_of_classes(names, counts, _folders(found, below))
    return about | {"warnings": warnings}


def _cached(
    home: pathlib.Path, items: Sequence[Any], shape: Sequence[int], source: images.Images
) -> records.CachedRecords:  # fmt: skip
    """The resized images of a source, which are written where they are not there yet.

    items: see `_mark`. shape: of the images.
    """
    name = f"{marks.digest(items)}-{'x'.join(map(str, shape))}"
    with index.locked(home):
        if not (home / name / "cache.json").is_file():
            LOG.warning("writing the resized images of %s to %s", source.name, home / name)
            with index.writing(home / name):
                records.write_cache(home / name, source, LOG.warning)
    return records.CachedRecords(home / name)


def _mark(items: Sequence[Any], which: Sequence[int]) -> str:
    """The mark of some of the items [name, mark of the file, metadata]."""
    return marks.digest([pictures.VERSION, *(items[i] for i in which)])


def _wrapper(names: list[str]) -> tuple[str, list[str]]:
    """The single folder, or folders in each other, around class folders: "photos/", or "".

    And a warning where only images beside folders stand against classes.
    """
    below = ""
    while True:
        rests = [name[len(below) :].partition("/") for name in names]
        folders = sorted({first for first, inside, _ in rests if inside})
        stray = next((first for first, inside, _ in rests if not inside), None)
        if stray is not None and folders and (below or len(folders) == 1):
            place = f"{listing.some(folders)}{' in ' + listing.shown(below) if below else ''}"
            return "", [f"no classes: images lie beside {place}, such as {listing.shown(stray)}"]
        if stray is not None:
            return "", []
        if len(folders) > 1:
            return below, []
        below += f"{folders[0]}/"


def _folders(found: listing.Listing, below: str) -> list[str]:
    """The top-level folders of all files, images or others."""
    named = [reason for reason in found.left_out if reason.startswith(".") or reason == EMPTY]
    others = (name for reason in named for name in found.left_out[reason])
    inside = [n.removeprefix(below) for n in (*found.found, *others) if n.startswith(below)]
    return sorted({name.partition("/")[0] for name in inside if "/" in name})


def _metadata(
    files: Folder | Zip, names: list[str], classes: bool, captions: str | None, length: int,
    below: str,
) -> tuple[dict[str, images.Metadata], dict[str, Any], dict[str, Any]]:  # fmt: skip
    """The metadata of each image, the conditions, and what the card says of both."""
    metadata: dict[str, images.Metadata] = {name: {} for name in names}
    conditions: dict[str, Any] = {}
    about: dict[str, Any] = {"warnings": []}
    folders = sorted({name.partition("/")[0] for name in names if "/" in name})
    if classes and len(folders) > 1:
        if stray := [name for name in names if "/" not in name]:
            raise DataError(
                f"{files.path}: {listing.shown(stray[0])} is not in any of the class folders"
                f" {', '.join(folders[:3])}; move it into one, or use --config.data.classes=False"
            )
        conditions["label"] = tuple(folders)
        numbers = {folder: number for number, folder in enumerate(folders)}
        for name in names:
            metadata[name]["label"] = numbers[name.partition("/")[0]]
    if captions is not None:
        conditions["text"] = length
        place = files.path.resolve()
        known = (posixpath.dirname(captions), below.rstrip("/"), place.stem, place.name)
        matched = text.match(_captions(files, captions, below), names, known)
        for name in names:
            metadata[name]["captions"] = matched.texts.get(name, [""])
        if not matched.texts:
            given = f"names {listing.some(matched.lost, 1)}" if matched.lost else "has no texts"
            raise DataError(
                f"{files.path}: {captions} names none of the images, such as {names[0]}; it {given}"
            )
        about["captions"] = card.of_captions(matched, names, length)
        about["warnings"] += card.warning_of_captions(about["captions"], captions)
    return metadata, conditions, about


def _captions(files: Folder | Zip, captions: str, below: str) -> dict[str, list[str]]:
    """{file name: captions} from a captions file in the folder, or beside the class folders."""
    try:
        try:
            data = files.read(captions)
        except (FileNotFoundError, KeyError):
            data = files.read(below + captions)
    except (OSError, KeyError, ValueError) as error:
        missing = "there is no such file in it" if isinstance(error, KeyError) else None
        reason = missing or getattr(error, "strerror", None) or error
        raise DataError(f"{files.path}: cannot read the captions {captions}: {reason}") from error
    try:
        return text.read_captions(data, captions.lower().endswith(".csv"))
    except ValueError as error:
        raise DataError(
            f"{files.path}: {captions} must be JSON lines, or CSV if it ends in .csv, with the"
            f" fields file_name and text: {error}"
        ) from error


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


def _trainable(
    train: list[str], rest: list[str], labels: Mapping[str, int | None]
) -> tuple[list[str], list[str], list[str]]:
    """The split with a training image for each class, and a warning where that changes it.

    Of a class that would be held out as a whole, the first image is trained on; if nothing is left
    to hold out, one image is in both parts.
    """
    trained = {labels[name] for name in train}
    alone = {labels[name]: name for name in reversed(rest) if labels[name] not in trained}
    moved, warnings = sorted(alone.values()), []
    if moved:
        held = sorted(set(rest) - set(moved))
        train, rest = sorted(train + moved), held or rest[:1]
        warnings = [
            f"not held out, since their classes have no other to train on: {listing.some(moved)}"
        ]
    if both := sorted(set(train) & set(rest)):
        warnings.append(f"too few images to hold one out: {listing.some(both)} is in both parts")
    return train, rest, warnings
