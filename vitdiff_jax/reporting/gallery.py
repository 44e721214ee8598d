"""Sections of a report that show pictures: samples, ways from noise, restorations.

A picture that cannot be shown leaves a `Problem` in its place.
"""

import io
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.reporting import page
from vitdiff_jax.reporting.page import Facts, Part, Problem, Table
from vitdiff_jax.runtime import tables

GRIDS, TRAJECTORIES, OTHERS, PAIRS, TASKS = 20, 2, 4, 6, 6
"""At most so many grids of a training, pictures of ways from noise, other pictures of samples,
restored pictures, and tasks of a benchmark.
"""
ROWS = 6
"""Images of a picture of ways from noise."""

Json = dict[str, Any]


def _picture(
    workdir: epath.Path, source: epath.Path, alt: str, name: str = ""
) -> page.Picture | Problem:
    try:
        return page.picture(source, alt, name)
    except Exception as error:
        return Problem(f"{source.relative_to(workdir)}: {type(error).__name__}: {error}")


def samples(workdir: epath.Path) -> Iterator[Part]:
    """Grids of a training under a slider, ways from noise, and what --mode=sample drew."""
    files = sorted((workdir / "samples").glob("*.png"))
    grids = [path for path in files if re.fullmatch(r"\d+", path.stem)]
    if grids:
        chosen = sorted({round(i) for i in np.linspace(0, len(grids) - 1, GRIDS)})
        found = [
            _picture(workdir, grids[i], f"Grid of samples at step {step:,}", f"step {step:,}")
            for i, step in ((i, int(grids[i].stem)) for i in chosen)
        ]
        some = "" if len(chosen) == len(grids) else f" {len(chosen)} of {len(grids)} grids."
        caption = f"From the same noise at each step, so that one sees each image change.{some}"
        yield from (part for part in found if isinstance(part, Problem))
        if pictures := [part for part in found if isinstance(part, page.Picture)]:
            yield page.Slider("Samples over training", pictures, caption)
    others = sorted((path for path in files if path not in grids), key=_age)
    for path in [path for path in others if "-frames" in path.stem][:TRAJECTORIES]:
        yield from page.careful(f"samples/{path.name}", _trajectory(path))
    for path in [path for path in others if "-frames" not in path.stem][:OTHERS]:
        what = "Samples beside the nearest training images" if "nearest" in path.stem else "Samples"
        found = _picture(workdir, path, f"{what}, {path.stem}")
        yield found if isinstance(found, Problem) else page.Shown(found, f"{what}: {path.name}")


def _age(path: epath.Path) -> float:
    """To sort the newest first."""
    return -path.stat().mtime


def _trajectory(path: epath.Path) -> Iterator[Part]:
    known = re.search(r"-n(\d+)-frames(\d+)$", path.stem)
    if known is None:
        raise ValueError("its name does not say how many images and frames it has")
    n, frames = map(int, known.groups())
    images = image_lib.cells(_pixels(path), n, frames)[:ROWS]
    sheet = image_lib.grid(images.reshape(-1, *images.shape[2:]), frames, least=1)
    alt = f"{len(images)} images, each in {frames} pictures from noise to the finished image"
    yield page.Shown(
        page.picture(sheet, alt),
        f"From noise, on the left, to the image, on the right: {path.name}",
    )


def _pixels(path: epath.Path) -> np.ndarray:
    """uint8 [H, W, 1 or 3] of a file."""
    with Image.open(io.BytesIO(path.read_bytes())) as file:
        image = np.asarray(file.convert("L" if file.mode in ("1", "L") else "RGB"))
    return image if image.ndim == 3 else image[..., None]


def restoration(workdir: epath.Path) -> Iterator[Part]:
    """Pictures before and after; of a benchmark its table and what each method makes."""
    report = tables.read(workdir / "restoration.json")
    if "images" in report:
        head, *cells = tables.of_restoration(report["rows"])
        yield Table(f"{report['images']:,} held-out images; 95 % intervals.", head, cells)
        sheets: dict[str, list[Json]] = {}
        for row in report["rows"]:
            sheets.setdefault(row["picture"], []).append(row)
        for name, rows in list(sheets.items())[:TASKS]:
            yield from page.careful(name, _methods(workdir, rows, report["shown"]))
    elif report:
        for row in report["rows"][:PAIRS]:
            yield from page.careful(row.get("restored", row["input"]), _pair(workdir, row))
        if (count := len(report["rows"])) > PAIRS:
            yield Facts(
                [("Pictures", f"{PAIRS} of {count} are shown; the others are in restored/")]
            )


def _within(workdir: epath.Path, name: str) -> epath.Path:
    """A file that a JSON file names; it may come from elsewhere, and shows nothing outside."""
    if pathlib.PurePath(name).is_absolute() or ".." in pathlib.PurePath(name).parts:
        raise ValueError(f"{name} is not in the workdir")
    return workdir / name


def _methods(workdir: epath.Path, rows: list[Json], shown: int) -> Iterator[Part]:
    """What each method makes of the same images, under a slider."""
    path = _within(workdir, rows[0]["picture"])
    names = [*(row["method"] for row in rows), "true"]
    columns = image_lib.cells(_pixels(path), shown, len(names)).swapaxes(0, 1)
    task, across = rows[0]["task"], math.ceil(shown / 2)
    pictures = [
        page.picture(image_lib.grid(images, across, least=1), f"{task}: {name}", name)
        for images, name in zip(columns, names)
    ]
    yield page.Slider(task, pictures, "Degraded, by each method, and as they truly are.")


def _pair(workdir: epath.Path, row: Json) -> Iterator[Part]:
    """A restored picture over what it was: the first two of those beside each other."""
    path = _within(workdir, row["restored"])
    beside = _pixels(path.with_name(f"{path.stem}-beside.png"))
    with Image.open(io.BytesIO(path.read_bytes())) as file:
        width, height = file.size
    factor = (beside.shape[0] - 4) // height  # how far small ones were enlarged
    across = (beside.shape[1] - 2) // (width * factor + 2)
    images = image_lib.cells(beside, 1, across)[0]
    name = pathlib.PurePath(row["input"]).name
    before, after = (
        page.picture(image, f"{name}, {what}", what)
        for image, what in zip(images, ("degraded", "restored"))
    )
    noise = f", noise {row['noise_std']:.3f}" if "noise_std" in row else ""
    caption = f"{row['task']} by {row['method']}{noise}, {row['seconds']} s"
    yield page.Compare(name, before, after, caption)
