"""Pictures in files for --samples and --truth: pairs by name, and without our own sheets."""

import json
import pathlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from vitdiff_jax.data import image_files
from vitdiff_jax.data.files import Folder, Zip, open_path
from vitdiff_jax.data.image_files import ImageSet
from vitdiff_jax.data.pipeline import DataError, shard
from vitdiff_jax.inference import provenance
from vitdiff_jax.interop import sheets
from vitdiff_jax.runtime import logs

OURS = re.compile(r"(.+)-(beside|uncertainty|\d+)\.png")
"""Names that --mode=restore gives to what is shown besides a restored picture."""
SHOWN = ("beside", "uncertainty", "mask", "benchmark")
"""What such pictures show, by their records."""
EXAMPLES = 3
"""Names in an error message."""


class Chosen:
    """Some images of a set in another order; which: their indices."""

    def __init__(self, images: ImageSet, which: Sequence[int]):
        self.images, self.which = images, which
        self.shape, self.origin, self.lossy = images.shape, images.origin, images.lossy

    def __len__(self):
        return len(self.which)

    def read(self, batch, first=0, process=0, processes=1):
        for start in range(first, len(self), batch):
            mine = shard(start, min(start + batch, len(self)), process, processes)
            yield np.stack([next(self.images.read(1, self.which[i]))[0] for i in mine])


class Without(Folder):
    """The files of a folder or zip file, except some."""

    def __init__(self, files: Folder | Zip, names: Sequence[str]):
        super().__init__(files.path)
        self._files, self._names = files, frozenset(names)

    def files(self):
        found = self._files.files()
        self.left_out = self._files.left_out
        return {name: stamps for name, stamps in found.items() if name not in self._names}

    def head(self, name, count):
        return self._files.head(name, count)

    def read(self, name):
        return self._files.read(name)


def open_pair(
    samples: pathlib.Path, truth: pathlib.Path | None
) -> tuple[ImageSet, ImageSet | None]:  # fmt: skip
    """The images to measure, and their ground truth in the same order.

    Files are paired by name, the images of .npz files by index. Raises DataError where they do not
    match.
    """
    images = _open(samples, "--samples", truth is not None)
    if truth is None:
        return images, None
    true = _open(truth, "--truth", paired=True)
    if isinstance(images, image_files.Files) and isinstance(true, image_files.Files):
        true = Chosen(true, match(images.names, true.names))
    elif isinstance(images, image_files.Files):
        images = Chosen(images, by_number(images.names, "--samples"))
    elif isinstance(true, image_files.Files):
        true = Chosen(true, by_number(true.names, "--truth"))
    if (len(true), true.shape) != (len(images), images.shape):
        raise DataError(
            f"--truth: {true.origin} of {true.shape}, but the samples are {images.origin} of"
            f" {images.shape}"
        )
    return images, true


def stamp(path: pathlib.Path) -> str:
    """What changes with the files of a folder, or with a file: names, sizes, times."""
    if path.is_dir():
        known = sorted(Folder(path).files().items())
    else:
        known = [path.stat().st_size, path.stat().st_mtime_ns]
    return f"{path.name} {provenance.digest_of_bytes(json.dumps(known).encode())}"


def match(samples: Sequence[str], truth: Sequence[str]) -> list[int]:
    """The index of each sample's ground truth, by the names of the files.

    Suffixes, leading zeros and the folders may differ, and that of a.png may be called a.png.png.
    Raises DataError if these are not pairs.
    """
    places: list[list[int]] = []
    for same in (str, _unpadded, lambda name: _unpadded(pathlib.PurePosixPath(name).name)):
        known: dict[str, set[int]] = {}
        for i, name in enumerate(truth):
            for key in {same(name), same(_stem(name))}:
                known.setdefault(key, set()).add(i)
        for read in (same, lambda name, same=same: same(_stem(name))):
            places = [sorted(known.get(read(name), ())) for name in samples]
            if all(len(p) == 1 for p in places):
                found = [p[0] for p in places]
                if sorted(found) == list(range(len(truth))):
                    return found
    raise DataError(
        "--truth: the names of the files do not match those of --samples:"
        f" {'; '.join(_unmatched(samples, truth, places))}"
    )


def _unmatched(
    samples: Sequence[str], truth: Sequence[str], places: Sequence[Sequence[int]]
) -> list[str]:  # fmt: skip
    """What is wrong with pairs, in words; places: the indices of the truths of each sample."""
    taken = {i for place in places for i in place}
    kinds = {
        "no truth for": [name for name, place in zip(samples, places) if not place],
        "no sample for": [name for i, name in enumerate(truth) if i not in taken],
    }
    found = [f"{words} {_some(names)}" for words, names in kinds.items() if names]
    twice = [name for name, place in zip(samples, places) if len(place) > 1]
    return found or [f"the same name for {_some(twice or samples)}"]


def by_number(names: Sequence[str], key: str) -> list[int]:
    """The order of files that an .npz file's images stand for: by the number in their names.

    Raises DataError where the names differ in anything else.
    """
    numbers = [[int(n) for n in re.findall("[0-9]+", _stem(name))] for name in names]
    words = {re.sub("[0-9]+", "#", _stem(name)) for name in names}
    if len(words) > 1 or len(set(map(tuple, numbers))) < len(names):
        raise DataError(
            f"{key}: {_some(names)} pair with the images of an .npz file by number, and their names"
            " are not numbered; use files of the same names instead of the .npz file"
        )
    return sorted(range(len(names)), key=numbers.__getitem__)


def _stem(name: str) -> str:
    return pathlib.PurePosixPath(name).with_suffix("").as_posix()


def _unpadded(name: str) -> str:
    """Without leading zeros of numbers, and with accents written in one way."""
    name = unicodedata.normalize("NFC", name)
    return re.sub("[0-9]+", lambda number: str(int(number[0])), name)


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many there are."""
    shown = ", ".join(names[:EXAMPLES])
    return f"{len(names):,} files ({shown}, ...)" if len(names) > EXAMPLES else shown


def _open(path: pathlib.Path, key: str, paired: bool) -> ImageSet:
    """The images of a folder, zip or .npz file, without what --mode=restore shows besides."""
    if path.is_dir() or path.suffix == ".zip":
        files = open_path(path, key)
        first = min((name for name in files.files() if name.endswith(".png")), default=None)
        if first is not None and sheets.is_sheet(_read(files, first)):
            raise DataError(
                f"{key}: {first} in {path} is a sheet of several images; --mode=sample --npz writes"
                " each of them"
            )
        if left := _besides(files, paired):
            logs.say(
                f"{key}: left out {_some(left)}, which --mode=restore shows besides its results"
            )
            return image_files.Files(Without(files, left))
    return image_files.open_images(path, key)


def _read(files: Folder | Zip, name: str) -> bytes:
    try:
        return files.read(name)
    except (OSError, ValueError) as error:  # damaged or encrypted in a zip file
        raise DataError(f"{files.path}: {name}: {error}") from error


def _besides(files: Folder | Zip, paired: bool) -> list[str]:
    """The names of our own comparisons and uncertainty maps; paired: of single samples too."""
    names, found = files.files(), []
    for name in sorted(names):
        beside = OURS.fullmatch(name)
        by_name = beside[2] if beside and f"{beside[1]}.png" in names else ""  # older files
        if not name.endswith(".png"):
            continue
        shows = provenance.of_bytes(_read(files, name)).get("shows", by_name)
        if shows in SHOWN or (paired and shows.startswith("sample ")):
            found.append(name)
    return found
