"""Sheets: image grids as PNG files with a machine-readable layout.

The layout is JSON in a text chunk of the file, which other programs ignore; a report reads it to
split the sheet and to label its images.
"""

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from vitdiff_jax.interop import images as image_lib

KEY = "vitdiff_jax"
"""The keyword of the text chunk."""


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Images uint8 [N, P, H, W, C]: P images for each of N examples.

    kind: "samples" (P = 1); "nearest": the sample and its nearest training image; "restored":
    degraded, restored, original; "trajectories": P times from noise to the sample.
    columns: examples per row of the file; each trajectory has its own row.
    names: the class of each example, "" for none; empty for models without classes.
    about: other items of the caption: step, seed, prompt, attributes.
    """

    kind: str
    images: np.ndarray
    columns: int = 1
    names: Sequence[str] = ()
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def pixels(self) -> np.ndarray:
        """The sheet as one image uint8 [H, W, C]."""
        n, p, h, w, c = self.images.shape
        if self.kind == "trajectories":
            return image_lib.grid(self.images.reshape(-1, h, w, c), p)
        joined = self.images.transpose(0, 2, 1, 3, 4).reshape(n, h, p * w, c)
        return image_lib.grid(joined, self.columns)


def write(path: epath.Path, sheet: Sheet, text: Mapping[str, str] = {}) -> None:
    """Write a sheet as a PNG file, atomically; text: further text chunks, by keyword."""
    n, p, h, w, _ = sheet.images.shape
    known = {
        "kind": sheet.kind, "shape": [n, p, h, w], "columns": sheet.columns,
        "names": list(sheet.names), "about": dict(sheet.about),
    }  # fmt: skip
    image_lib.save_png(path, sheet.pixels, text={KEY: json.dumps(known), **text})


def is_sheet(data: bytes) -> bool:
    """Whether a file is a sheet; its pixels are not read. False for what is no image."""
    try:
        with Image.open(io.BytesIO(data)) as file:
            return KEY in file.info
    except Exception:  # Pillow raises all kinds of errors for damaged files
        return False


def read(path: epath.Path) -> Sheet | None:
    """Read a sheet, with its images at their original size; None for other PNG files.

    Raises OSError or ValueError for files that are not images or do not match their layout.
    """
    with Image.open(io.BytesIO(path.read_bytes())) as file:
        file.load()
        text = getattr(file, "text", {}).get(KEY)
        if text is None:
            return None
        pixels = np.asarray(file.convert("L" if file.mode in ("1", "L") else "RGB"))
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    try:
        known = json.loads(text)
        (n, p, h, w), columns = known["shape"], known["columns"]
        kind, names, about = known["kind"], known["names"], known["about"]
        columns, n_cells = (p, n * p) if kind == "trajectories" else (columns, n)
        cut = image_lib.cells(pixels, -(-n_cells // columns), columns)
    except (LookupError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"its text chunk {KEY} is not the layout of a sheet") from error
    cut = cut.reshape(-1, *cut.shape[2:])[:n_cells]  # [N, h', P w', C], enlarged
    factor = cut.shape[1] // h
    cut = cut[:, ::factor, ::factor]
    images = cut.reshape(n, h, p, w, -1).swapaxes(1, 2) if kind != "trajectories" else cut
    return Sheet(kind, images.reshape(n, p, h, w, -1), known["columns"], names, about)
