"""Missing pixels: y = mask x. For inpainting.

"box": a square, "random": a fraction of the pixels, the same in all channels, "strokes": free-form
strokes (as in arXiv:1806.03589), "file": an image that marks them, see `masks`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from vitdiff_jax.operators import Shape, masks, register, static
from vitdiff_jax.operators.svd import Svd
from vitdiff_jax.runtime import paths


@register
class Mask:
    """known: 1 for known pixels, 0 for missing ones; [H, W, 1], or [B, H, W, 1] per image."""

    known: jax.Array | np.ndarray
    channels: int = static()
    linear: bool = static(default=True)

    def forward(self, x: jax.Array) -> jax.Array:
        return jnp.asarray(self.known, x.dtype) * x

    def svd(self) -> Svd:
        values = jnp.repeat(jnp.asarray(self.known, jnp.float32), self.channels, -1)
        return Svd(values, lambda x: x, lambda z: z, self.forward)


def make(
    shape: Shape,
    rng: np.random.Generator,
    kind: str = "box",
    side: float = 0.5,
    margin: float = 1 / 16,
    share: float = 0.7,
    strokes: int = 8,
    path: str = "",
) -> Mask:
    """A mask of this kind.

    side: of the box, relative to the shorter side of the image; margin: its minimum distance to the
    border, likewise. share: the fraction of missing pixels. strokes: their number. path: of a file.
    """
    if kind == "box":
        missing = _box(shape, rng, side, margin)
    elif kind == "random":
        missing = _random(shape, rng, share)
    elif kind == "strokes":
        missing = _strokes(shape, rng, strokes)
    elif kind == "file":
        try:
            missing = masks.fitted(masks.of(paths.local_copy(path)), shape)
        except ValueError as error:
            raise ValueError(f"path: {error}") from error
    else:
        raise ValueError(f"kind: {kind!r} is not one of box, random, strokes, file")
    return Mask((~missing).astype(np.float32)[..., None], shape[2])


def _box(shape: Shape, rng: np.random.Generator, side: float, margin: float) -> np.ndarray:
    height, width = shape[:2]
    size, edge = round(side * min(height, width)), round(margin * min(height, width))
    if not 0 < size <= min(height, width) - 2 * edge:
        raise ValueError(f"side: a box of {size} pixels, {edge} from the border, does not fit")
    top, left = (int(rng.integers(edge, n - edge - size + 1)) for n in (height, width))
    missing = np.zeros((height, width), bool)
    missing[top : top + size, left : left + size] = True
    return missing


def _random(shape: Shape, rng: np.random.Generator, share: float) -> np.ndarray:
    if not 0 <= share <= 1:
        raise ValueError(f"share: {share} is not in [0, 1]")
    count = shape[0] * shape[1]
    missing = np.zeros(count, bool)
    missing[rng.permutation(count)[: round(share * count)]] = True
    return missing.reshape(shape[:2])


def _strokes(shape: Shape, rng: np.random.Generator, strokes: int) -> np.ndarray:
    """Polylines of random thickness with round joints."""
    height, width = shape[:2]
    size = min(height, width)
    sheet = Image.new("1", (width, height))
    pen = ImageDraw.Draw(sheet)
    for _ in range(strokes):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        thick = max(1, round(rng.uniform(0.02, 0.06) * size))
        angle = rng.uniform(0, 2 * math.pi)
        for _ in range(int(rng.integers(3, 8))):
            angle += rng.uniform(-1, 1)
            length = rng.uniform(0.05, 0.2) * size
            end = x + length * math.cos(angle), y + length * math.sin(angle)
            pen.line([(x, y), end], fill=1, width=thick)
            pen.ellipse([c + d for d in (-thick / 2, thick / 2) for c in end], fill=1)
            x, y = end
    return np.asarray(sheet)
