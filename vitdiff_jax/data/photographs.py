"""Crops of photographs at many scales, for a prior to restore photographs with.

    python -m vitdiff_jax.data.photographs FOLDER

gathers 55 photographs from Debian's packages, as listed in photographs.csv with their licences,
and the 11 of `scenes`, into FOLDER/train and FOLDER/heldout: whole photographs are held out, never
crops of them. Each file is checked by its SHA-256, then reduced to at most `LONGEST` pixels: what a
camera resolves at full size is noise and the blur of its lens. Needs apt-get and dpkg-deb, no root.

The data set reads any folder with two such subfolders: bring photographs of your own.
"""

import csv
import hashlib
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from vitdiff_jax.data import listing, marks, scenes, transforms
from vitdiff_jax.data.files import Folder
from vitdiff_jax.data.pipeline import DataError, Dataset

LIST = pathlib.Path(__file__).with_name("photographs.csv")
"""split, name, licence, package, path in it, SHA-256."""
LONGEST = 1536
"""Longest side in pixels of a gathered photograph."""
PER_SIDE = 3
"""Held-out crops per row and column of a photograph at each factor, at most."""
HELDOUT_FACTORS = (1, 2)
"""Held-out photographs are cropped at full size and at half of it."""
THREADS = 4


def dataset(size: int = 64, path: str = "") -> Dataset:
    """Colour crops of size x size pixels of the photographs in path/train, path/heldout."""
    if not path:
        raise ValueError("path: required: a folder that `vitdiff_jax.data.photographs` gathers")
    home = pathlib.Path(path).expanduser()
    parts = {split: _photographs(home / split) for split in ("train", "heldout")}
    left = "; ".join(
        f"left out of {split}: {text}"
        for split in parts
        if (text := listing.summary(listing.images(Folder(home / split)).left_out))
    )
    views = {f"{s}/{name}": view for s, part in parts.items() for name, view in part.items()}
    smallest, which = min((min(view.shape[:2]), name) for name, view in views.items())
    if not scenes.MIN_SIZE <= size <= smallest:
        raise ValueError(
            f"size: {size} is not between {scenes.MIN_SIZE} and {smallest}, the side of the"
            f" smallest photograph, {which}"
        )
    pyramids = tuple(scenes.pyramid([view], size) for view in parts["train"].values())
    held = [
        scenes.reduced(view, factor)
        for view in parts["heldout"].values()
        for factor in HELDOUT_FACTORS
        if min(view.shape[:2]) >= factor * size
    ]
    fixed = scenes.Fixed(scenes.grids(held, size, PER_SIDE))
    counts = {split: len(part) for split, part in parts.items()}
    content = [[name, marks.of_bytes(view.tobytes())] for name, view in views.items()]
    trained = {mark: name for name, mark in content if name.startswith("train/")}
    for name, mark in content:
        if name.startswith("heldout/") and mark in trained:
            raise DataError(f"{home}: {name} is {trained[mark]} again; hold out other photographs")
    return Dataset(
        train=scenes.Patches(pyramids, size),
        heldout=fixed,
        shape=(size, size, 3),
        conditions={},
        origin=f"random crops of {counts['train']} photographs in {home}"
        f" ({len(fixed)} crops of {counts['heldout']} others held out{'; ' * bool(left)}{left})",
        crop=f"{size}x{size} crops, downsampled up to {scenes.REDUCTIONS[-1]} times",
        mark=marks.digest(content),
        card={"photographs": counts},
    )


def _photographs(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """{name: uint8 [H, W, 3]} of a folder. Raises DataError for a missing or empty one."""
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; gather photographs by"
            f" `python -m vitdiff_jax.data.photographs {folder.parent}`"
        )
    files = Folder(folder)
    names = list(listing.images(files).found)

    def read(name):
        try:
            image = transforms.decode(files.read(name), 3)
        except (ValueError, OSError) as error:
            raise DataError(f"{folder / name}: {error}") from error
        return transforms.pixels(reduced_to(image, LONGEST))

    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(read, names)))


def reduced_to(image: Image.Image, longest: int) -> Image.Image:
    """The image with sides of at most `longest` pixels, antialiased bicubic."""
    factor = max(image.size) / longest
    if factor <= 1:
        return image
    width, height = (max(1, round(side / factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def gather(folder: pathlib.Path) -> None:
    """Write the photographs of `LIST` and of `scenes` into folder/train and folder/heldout.

    Raises DataError, with nothing written, if a package cannot be had or a file is another one.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: is not empty; name a new folder")
    found = {}
    for name in scenes.FILES:
        split = "heldout" if name in scenes.HELDOUT else "train"
        found[split, name] = Image.fromarray(scenes.photograph(name))
    with tempfile.TemporaryDirectory() as scratch:
        rows = list(csv.DictReader(LIST.open()))
        for package in sorted({row["package"] for row in rows}):
            print(f"{package} ...", flush=True)
            home = _unpacked(package, pathlib.Path(scratch))
            of_package = [row for row in rows if row["package"] == package]
            for row, data in zip(of_package, _checked(of_package, home)):
                found[row["split"], row["name"]] = transforms.decode(data, 3)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        whole = pathlib.Path(scratch, "whole")
        for (split, name), image in found.items():
            target = whole / split / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            reduced_to(image, LONGEST).save(target)
        whole.replace(folder)  # an empty one may be there
    print(f"{len(found)} photographs in {folder}")


def _unpacked(package: str, scratch: pathlib.Path) -> pathlib.Path:
    """A folder with the files of a Debian package. Raises DataError."""
    try:
        _run(["apt-get", "-q", "download", package], scratch)
        (archive,) = scratch.glob(f"{package}_*.deb")
        _run(["dpkg-deb", "-x", archive, scratch / package], scratch)
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename}: not found: this needs Debian or Ubuntu; elsewhere put photographs"
            " of your own into FOLDER/train and FOLDER/heldout"
        ) from error
    except subprocess.CalledProcessError as error:
        why = (error.stderr.strip().splitlines() or ["failed"])[-1]
        raise DataError(f"{package}: {why}; try `apt-get update` first") from error
    return scratch / package


def _run(command: list[str | pathlib.Path], cwd: pathlib.Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)


def _checked(rows: list[dict[str, str]], home: pathlib.Path) -> Iterator[bytes]:
    """The files of these rows of `LIST`. Raises DataError where one is not what it should be."""
    for row in rows:
        try:
            data = (home / row["path"]).read_bytes()
        except OSError as error:
            raise DataError(f"{row['package']}: has no {row['path']}: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise DataError(
                f"{row['package']}: {row['path']} has another SHA-256 than in {LIST.name}:"
                " another version of the package"
            )
        yield data


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m vitdiff_jax.data.photographs FOLDER")
    try:
        gather(pathlib.Path(sys.argv[1]).expanduser())
    except (DataError, OSError) as error:
        sys.exit(str(error))
