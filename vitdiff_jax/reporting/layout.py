"""Images in columns and rows with names, in bands of a few columns that a page wraps to its screen.

A phone of 390x844 CSS pixels and a laptop of 1280x800 decide how many columns make a band, and how
far images are enlarged: on both, a figure with its caption is no taller than the screen. Small
images are enlarged by integers, so that each pixel is a square; photographs are scaled.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vitdiff_jax.reporting import page

PHONE = 358, 520
HALF, FULL = (468, 500), (976, 500)
"""Width and height that the images of a figure may take, in CSS pixels: on a phone; on a laptop in
one of two columns of figures, or in both."""
BETWEEN = 24
"""CSS pixels between two bands beside each other, as page.css has it, if they have names."""
SMALL, STORED = 96, 192
"""Pixels of a side: up to `SMALL` an image is shown as squares; at most so many a page holds."""
LEAST, LEAST_PHOTO, MOST = 40, 68, 104
"""CSS pixels of a side: at least, where there is room; at most (photographs twice that)."""
ALONE = 320
"""CSS pixels of a side of a small picture that stands alone, at most."""
FEW, ENOUGH = 4, 60
"""Rows that count for more than a larger zoom; CSS pixels of a side that need no wider figure."""
LETTER = 7
"""CSS pixels of a letter of a name, at most but for the widest."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How images [G, R, H, W, C], G columns of R images, are shown: see `arrange`.

    picked: the columns that are shown. rows: the first so many are. size: of an image at zoom 1.
    full: over the whole width of a page.
    """

    picked: Sequence[int]
    rows: int
    per_band: int
    zoom: page.Zoom
    size: tuple[int, ...]
    full: bool
    column_names: Sequence[str]
    row_names: Sequence[str]


def arrange(
    shape: Sequence[int], column_names: Sequence[str] = (), row_names: Sequence[str] = (), *,
    cut: bool = True, wrap: bool = True,
) -> Layout:  # fmt: skip
    """Choose how to show images of a shape [G, R, H, W, C].

    cut: leave out rows that have no room; else all become smaller. wrap: into as many bands as have
    room; else a single one, of columns chosen evenly.
    """
    count, rows, height, width = shape[:4]
    scale = min(1, STORED / max(height, width))
    size = max(1, round(scale * height)), max(1, round(scale * width))
    down, right = (s + _gutter(size) for s in size)
    side = min(72, 10 + LETTER * max(map(len, row_names))) if row_names else 0
    head, zooms = _head(column_names, row_names), _zooms(size)

    def rows_at(zoom, bands):  # that have room on a phone
        return int((PHONE[1] / bands - head) // (zoom * down))

    needed, room = 1 if cut else rows, PHONE[0] - side
    fitting = [z for z in zooms if z * right <= room and rows_at(z, 1) >= needed] or zooms[:1]
    least = LEAST_PHOTO if max(size) > SMALL else max(LEAST, right)
    wanted = max(least, _word(column_names))
    zoom = next((z for z in fitting if z * right >= wanted), fitting[-1])
    per_band = max(1, int(room // (zoom * right)))
    most = int(PHONE[1] // (zoom * needed * down + head)) if wrap else 1
    bands = max(1, min(most, -(-count // per_band)))
    shown = min(count, bands * per_band)
    picked = np.arange(shown) if wrap else np.linspace(0, count - 1, shown).round().astype(int)
    per_band, needed = -(-shown // bands), min(rows, FEW) if cut else rows
    larger = [z for z in fitting if z * per_band * right <= room and rows_at(z, bands) >= needed]
    zoom = max([zoom, *larger])
    rows = max(1, min(rows, rows_at(zoom, bands))) if cut else rows
    band = per_band * right, rows * down
    half, full = (_wide(screen, zooms, bands, band, side, head) for screen in (HALF, FULL))
    spread = half * right < ENOUGH and full > half
    return Layout(
        picked.tolist(), rows, per_band, page.Zoom(zoom, full if spread else half, round(side)),
        size, spread, [column_names[int(i)] for i in picked] if column_names else (),
        row_names[:rows],
    )  # fmt: skip


def _zooms(size: tuple[int, ...]) -> list[float]:
    """By how much images may be enlarged, the smallest first."""
    right = size[1] + _gutter(size)
    if max(size) > SMALL:
        return [pixels / right for pixels in range(24, 2 * MOST + 1, 4)]
    return [0.25, 0.5, *range(1, max(1, MOST // right) + 1)]


def _wide(
    screen: tuple[int, int], zooms: Sequence[float], bands: int, band: tuple[int, int],
    side: float, head: int,
) -> float:  # fmt: skip
    """The largest zoom at which bands of a width and height have room on a laptop."""
    for zoom in reversed(zooms):
        width = side + zoom * band[0]
        between = BETWEEN if head else 0
        lines = -(-bands // max(1, int((screen[0] + between) // (width + between))))
        if width <= screen[0] and lines * (zoom * band[1] + head) <= screen[1]:
            return zoom
    return zooms[0]


def frame(layout: Layout, images: np.ndarray, alt: str, name: str = "") -> page.Frame:
    """The chosen images, uint8 [G, R, H, W, C], the last channel opacity, as bands of a page."""
    firsts = range(0, len(images), layout.per_band)
    most = page.MOST_BYTES // len(firsts)
    squares = max(layout.size) <= SMALL and min(layout.zoom.narrow, layout.zoom.wide) >= 1
    bands = []
    for first in firsts:
        part = slice(first, first + layout.per_band)
        columns = layout.column_names[part]
        words = alt if len(firsts) == 1 else f"{alt}, part {len(bands) + 1} of {len(firsts)}"
        words += f"; columns: {', '.join(filter(None, columns))}" if any(columns) else ""
        words += f"; rows: {', '.join(layout.row_names)}" if layout.row_names else ""
        pixels = _joined(images[part], layout.size)
        found = page.picture(pixels, words, most, squares)
        bands.append(page.Band(found, columns, layout.row_names))
    return page.Frame(bands, name)


def single(picture: page.Picture) -> page.Zoom:
    """For a picture that stands alone: an integer where it is to be seen as squares."""

    def most(room):
        width, height = (min(side, ALONE) if picture.pixelated else side for side in room)
        zoom = min(width / picture.width, height / picture.height)
        return float(int(zoom)) if picture.pixelated and zoom > 1 else min(zoom, 1.0)

    return page.Zoom(most(PHONE), most(HALF))


def opaque(images: np.ndarray) -> np.ndarray:
    """Images uint8 [..., 1 or 3] with a channel of opacity."""
    return np.concatenate([images, np.full_like(images[..., :1], 255)], -1)


def columns(groups: Sequence[np.ndarray]) -> np.ndarray:
    """Columns of opaque images [n, H, W, C], the shorter ones filled up: [G, R, H, W, C + 1]."""
    rows = max(map(len, groups))
    empty = np.zeros((len(groups), rows, *groups[0].shape[1:-1], groups[0].shape[-1] + 1), np.uint8)
    for column, images in zip(empty, groups):
        column[: len(images)] = opaque(images)
    return empty


def _joined(images: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Images [G, R, H, W, C] as one [R (h + gutter), G (w + gutter), C], gutters transparent."""
    if images.shape[2:4] != size:
        scaled = [
            np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.LANCZOS))
            for image in images.reshape(-1, *images.shape[2:])
        ]
        images = np.stack(scaled).reshape(*images.shape[:2], *size, -1)
    gutter = [(0, _gutter(size))] * 2
    images = np.pad(images, [(0, 0), (0, 0), *gutter, (0, 0)])
    g, r, h, w, c = images.shape
    return images.transpose(1, 2, 0, 3, 4).reshape(r * h, g * w, c)


def _gutter(size: tuple[int, ...]) -> int:
    """Pixels between images."""
    return 1 if max(size) <= SMALL else 4


def _head(column_names: Sequence[str], row_names: Sequence[str]) -> int:
    """CSS pixels above the images of a band: for names of columns, and to part it from others."""
    if any(column_names):
        return 48 if max(map(len, column_names)) > 6 else 34
    return 14 if row_names else 0


def _word(names: Sequence[str]) -> float:
    """CSS pixels of the longest word, which is broken only if it is very long."""
    words = re.split(r"\W+", " ".join(names))
    return min(80, LETTER * max(map(len, words)))
