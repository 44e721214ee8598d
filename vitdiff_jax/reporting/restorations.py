"""The restorations of a report: pictures before and after, and methods of a benchmark compared."""

import io
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.reporting import layout, page
from vitdiff_jax.reporting.page import Compare, Facts, Gallery, Part, Table
from vitdiff_jax.runtime import tables

PAIRS, TASKS = 6, 6
"""At most so many restored pictures are shown, and so many tasks of a benchmark."""

Json = dict[str, Any]


def restorations(workdir: epath.Path) -> Iterator[Part]:
    """Pictures before and after; of a benchmark its table and what each method restores."""
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
        done = [row for row in report["rows"] if "failed" not in row]
        for row in done[:PAIRS]:
            yield from page.careful(row.get("restored", row["input"]), _pair(workdir, row))
        if (count := len(done)) > PAIRS:
            where = pathlib.PurePath(done[0].get("restored", "restored/")).parts[0]
            yield Facts([("Pictures", f"{PAIRS} of {count} are shown, all are in {where}/")])
        failed = [
            (pathlib.PurePath(r["input"]).name, r["failed"])
            for r in report["rows"]
            if "failed" in r
        ]
        if failed:
            yield Table("Not restored", ("picture", "why"), failed)


def _within(workdir: epath.Path, name: str) -> epath.Path:
    """A file that a JSON file names; it may come from elsewhere, and shows nothing outside."""
    if pathlib.PurePath(name).is_absolute() or ".." in pathlib.PurePath(name).parts:
        raise ValueError(f"{name} is not in the workdir")
    return workdir / name


def _pixels(path: epath.Path) -> np.ndarray:
    """uint8 [H, W, 1 or 3] of a file."""
    with Image.open(io.BytesIO(path.read_bytes())) as file:
        image = np.asarray(file.convert("L" if file.mode in ("1", "L") else "RGB"))
    return image if image.ndim == 3 else image[..., None]


def _methods(workdir: epath.Path, rows: list[Json], shown: int) -> Iterator[Part]:
    """What each method makes of the same images: a row for each, and the originals."""
    path = _within(workdir, rows[0]["picture"])
    names = [*(row["method"] for row in rows), "original"]
    images = _native(image_lib.cells(_pixels(path), shown, len(names)))  # [columns, rows, ...]
    plan = layout.arrange(images.shape, (), names, cut=False, wrap=False)
    task = rows[0]["task"]
    noise = f", noise {rows[0]['noise_std']:.3f}" if rows[0].get("noise_std") else ""
    frame = layout.frame(plan, layout.opaque(images[plan.picked]), f"{task}{noise}")
    caption = f"{task}{noise}: degraded, restored by each method, and original"
    yield Gallery([frame], plan.zoom, caption)


def _native(images: np.ndarray) -> np.ndarray:
    """Images [..., H, W, C] that were enlarged by an integer, in the size that they had."""
    *_, h, w, _ = images.shape
    axes = tuple(range(images.ndim - 3))
    down = np.diff(images.astype(np.int16), axis=-3).any((*axes, -2, -1))  # [H - 1]
    right = np.diff(images.astype(np.int16), axis=-2).any((*axes, -3, -1))
    factor = np.gcd.reduce([h, w, *(np.flatnonzero(down) + 1), *(np.flatnonzero(right) + 1)])
    return images[..., ::factor, ::factor, :]


def _pair(workdir: epath.Path, row: Json) -> Iterator[Part]:
    """A restored picture over what it was: the first two of those beside each other."""
    path = _within(workdir, row["restored"])
    beside = _pixels(path.with_name(f"{path.stem}-beside.png"))
    with Image.open(io.BytesIO(path.read_bytes())) as file:
        width, height = file.size
    factor = (beside.shape[0] - 4) // height  # how far small ones were enlarged
    across = (beside.shape[1] - 2) // (width * factor + 2)
    images = image_lib.cells(beside, 1, across)[0, :, ::factor, ::factor]
    name = pathlib.PurePath(row["input"]).name
    names = "degraded", "restored"
    before, after = (page.picture(image, f"{name}, {what}") for image, what in zip(images, names))
    noise = f", noise {row['noise_std']:.3f}" if "noise_std" in row else ""
    caption = f"{row['task']} by {row['method']}{noise}, {row['seconds']} s"
    yield Compare(name, before, after, names, layout.single(before), caption)
