"""The samples of a report: sheets of training and of `--mode=sample`, taken apart and named.

A file that cannot be shown leaves a `Problem` in its place; one that does not say what it shows is
shown as it is.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from vitdiff_jax.interop import sheets
from vitdiff_jax.interop.sheets import Sheet
from vitdiff_jax.reporting import layout, page
from vitdiff_jax.reporting.page import Band, Frame, Gallery, Part, Picture, Problem

STEPS, NEWEST = 20, 40
"""At most so many grids of a training are shown, and so many other files are looked at."""
KINDS = {"samples": 4, "restored": 4, "trajectories": 2, "nearest": 2, "": 4}
"""At most so many other files of each kind are shown; "": those that do not say what they are."""
TRAJECTORIES = 5
"""Of a file, at most."""
ROWS = {"nearest": ("sample", "nearest"), "restored": ("degraded", "restored", "original")}
SAME = 2
"""Grey levels by which two images may differ that count as the same one."""


class Shown(NamedTuple):
    """What is shown of a sheet: images [columns, rows, H, W, C] with opacity, and how."""

    sheet: Sheet
    cells: np.ndarray
    layout: layout.Layout


Found = Shown | Picture


def samples(workdir: epath.Path) -> Iterator[Part]:
    """Grids of a training under a slider, then what else is in samples/; nothing twice."""
    files = sorted((workdir / "samples").glob("*.png"))
    grids = [path for path in files if re.fullmatch(r"\d+", path.stem)]
    others = sorted(set(files) - set(grids), key=lambda path: (-path.stat().mtime, path.name))
    seen: list[Found] = []
    yield from _training(grids, seen) if grids else ()
    kinds: dict[str, list[Found]] = {kind: [] for kind in KINDS}
    for path in others[:NEWEST]:
        found = _read(path)
        if isinstance(found, Problem):
            yield found
            continue
        kind = found.sheet.kind if isinstance(found, Shown) else ""
        if len(kinds[kind]) < KINDS[kind] and not any(_within(found, other) for other in seen):
            kinds[kind].append(found)
            seen.append(found)
    for found in (found for kind in kinds.values() for found in kind):
        yield _gallery({"": found})


def _read(path: epath.Path) -> Found | Problem:
    try:
        sheet = sheets.read(path)
        if sheet is None:
            return page.picture(path, "Samples")
        if sheet.kind not in KINDS:
            raise ValueError(f"a sheet of unknown kind {sheet.kind}")
        cells, columns, rows = _cells(sheet)
        cut, wrap = sheet.kind not in ROWS, sheet.kind != "trajectories"
        plan = layout.arrange(cells.shape, columns, rows, cut=cut, wrap=wrap)
        return Shown(sheet, cells[plan.picked, : plan.rows], plan)
    except Exception as error:
        return page.problem(f"samples/{path.name}", error)


def _training(grids: Sequence[epath.Path], seen: list[Found]) -> Iterator[Part]:
    """Grids of some steps, of equal ones the newest; the newest of all joins `seen`."""
    chosen = sorted({round(i) for i in np.linspace(0, len(grids) - 1, STEPS)}, reverse=True)
    frames: dict[str, Found] = {}
    for path in (grids[i] for i in chosen):
        found, known = _read(path), list(frames.values())
        if isinstance(found, Problem):
            yield found
        elif all(_comparable(found, e) and not _within(found, e) for e in known):
            frames[f"step {int(path.stem):,}"] = found
    if frames:
        seen.append(next(iter(frames.values())))
        some = f"; {len(chosen)} of {len(grids)} steps" if len(chosen) < len(grids) else ""
        yield _gallery(dict(reversed(frames.items())), some)


def _comparable(a: Found, b: Found) -> bool:
    """Whether two grids may stand under one slider."""
    if isinstance(a, Shown) and isinstance(b, Shown):
        return (a.cells.shape, a.sheet.names) == (b.cells.shape, b.sheet.names)
    return isinstance(a, Picture) and isinstance(b, Picture)


def _within(a: Found, b: Found) -> bool:
    """Whether all that is shown of `a` is shown of `b` too."""
    if isinstance(a, Picture) or isinstance(b, Picture):
        return isinstance(a, Picture) and isinstance(b, Picture) and a.uri == b.uri
    if a.sheet.kind != b.sheet.kind or a.cells.shape[2:] != b.cells.shape[2:]:
        return False
    known = _images(b)
    return all((abs(known - image).max((1, 2, 3)) <= SAME).any() for image in _images(a))


def _images(found: Shown) -> np.ndarray:
    """int16 [n, H, W, C]."""
    flat = found.cells.reshape(-1, *found.cells.shape[2:])
    return flat[flat[..., -1].any((1, 2))].astype(np.int16)


def _gallery(frames: Mapping[str, Found], some: str = "") -> Gallery:
    """Files of one kind by the names of their frames, which are steps; some: ends the caption."""
    *_, newest = frames.values()
    series, label, known = len(frames) > 1, "Samples over training", []
    if isinstance(newest, Picture):
        what, zoom, full = "Samples", layout.single(newest), False
        when, left_out = ["not labelled"], ""
    else:
        what, zoom, full = _what(newest.sheet), newest.layout.zoom, newest.layout.full
        when, left_out = _when(newest.sheet), _left_out(newest)
    for name, found in frames.items():
        alt = f"{what}, {name}" if series else what
        if isinstance(found, Picture):
            known.append(Frame([Band(dataclasses.replace(found, alt=alt))], name))
        elif isinstance(newest, Shown):  # all of a series are of one kind
            known.append(layout.frame(newest.layout, found.cells, alt, name))
    caption = ", ".join([what, *(["the same noise at each step"] if series else when)])
    return Gallery(known, zoom, caption + left_out + some, label, full)


def _cells(sheet: Sheet) -> tuple[np.ndarray, Sequence[str], Sequence[str]]:
    """All images [columns, rows, H, W, C] with opacity, names of columns, and of rows."""
    images, names = sheet.images, list(sheet.names)
    classes = list(dict.fromkeys(names))
    if sheet.kind == "trajectories":
        images = images[:TRAJECTORIES].swapaxes(0, 1)
        columns = ["noise", *["→"] * (len(images) - 2), "image"]
        rows = [_short(name) for name in names[:TRAJECTORIES]] if len(classes) > 1 else ()
        return layout.opaque(images), columns, rows
    if sheet.kind in ROWS:
        return layout.opaque(images), (), ROWS[sheet.kind]
    if len(classes) < 2:
        return layout.opaque(images), (), ()
    groups = [images[[name == other for other in names], 0] for name in classes]
    return layout.columns(groups), [_short(name) for name in classes], ()


def _short(name: str) -> str:
    """Of several names of a class, as ImageNet has them, the first."""
    return name.split(",")[0]


def _what(sheet: Sheet) -> str:
    """For a caption: what a sheet shows."""
    count, about = len(sheet.images), sheet.about
    classes = list(dict.fromkeys(sheet.names))
    noun = "samples" if count > 1 else "sample"
    if classes == [""]:
        noun = f"unconditional {noun}"
    elif len(classes) == 1:
        noun += f" of class {_short(classes[0])}"
    elif classes:
        share = count // len(classes)
        even = share > 1 and share * len(classes) == count
        noun += f", {share} of each class" if even else f" of {len(classes)} classes"
    noun += f" for the prompt “{about['prompt']}”" if about.get("prompt") else ""
    noun += f" with the attributes {about['attributes']}" if about.get("attributes") else ""
    if sheet.kind == "samples":
        return f"{count} {noun}"
    return {
        "trajectories": "Sampling trajectories, noise → image"
        + (f", class {_short(classes[0])}" if len(classes) == 1 and classes[0] else ""),
        "nearest": f"{count} {noun}, and their nearest training images, likeliest copies first",
        "restored": "Held-out images: degraded, restored and original",
    }[sheet.kind]


def _when(sheet: Sheet) -> list[str]:
    """For a caption: seed and step of a sheet, and unusual settings, where it says them."""
    numbers = [f"{key} {sheet.about[key]:,}" for key in ("seed", "step") if key in sheet.about]
    return [*numbers, *map(str, sheet.about.get("settings", ()))]


def _left_out(found: Shown) -> str:
    """For a caption: how many examples of a sheet are shown, if not all."""
    kind, total = found.sheet.kind, len(found.sheet.images)
    if kind == "trajectories":
        return ""
    count = len(found.cells) if kind in ROWS else len(_images(found))
    return f"; {count} of them are shown" if count < total else ""
