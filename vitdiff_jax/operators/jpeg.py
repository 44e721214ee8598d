"""JPEG compression: 8x8 DCT coefficients rounded to multiples of the quantisation tables.

As in libjpeg and Pillow (ITU-T T.81, annex K; JFIF colour space): tables scaled by the quality,
chroma averaged over 2x2 pixels ("420") or not ("444"). Rounding has a straight-through gradient, so
that gradient-based methods can use it. Not linear.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.operators import Shape, register, static
from vitdiff_jax.runtime import pictures

LUMA = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56], [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
])  # fmt: skip
CHROMA = np.full((8, 8), 99)
CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
YCC = np.array([
    [0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312],
])  # fmt: skip


@register
class Jpeg:
    """The decoded image, in [-1, 1]. orientation: EXIF's; blocks lie as in the file as stored."""

    quality: int = static()
    subsampling: str = static()
    orientation: int = static(default=1)
    linear: bool = static(default=False)

    def forward(self, x: jax.Array) -> jax.Array:
        back = {6: 8, 8: 6}.get(self.orientation, self.orientation)
        return _turned(self._stored(_turned(x, back)), self.orientation)

    def _stored(self, x: jax.Array) -> jax.Array:
        pixels = _round(jnp.clip(127.5 * (x + 1), 0, 255)) - 128
        if x.shape[-1] == 1:
            return _pixels(_coded(pixels, tables(self.quality)[0]))
        planes = _round(_dot(pixels + 128, YCC)) - np.array([128, 0, 0])
        luma = _coded(planes[..., :1], tables(self.quality)[0])
        chroma = planes[..., 1:]
        if self.subsampling == "420":
            chroma = _round(_downsample(chroma))
        chroma = _coded(chroma, tables(self.quality)[1])
        if self.subsampling == "420":
            chroma = _round(_upsample(chroma))[:, : x.shape[1], : x.shape[2]]
        return _pixels(_dot(jnp.concatenate([luma + 128, chroma], -1), np.linalg.inv(YCC)) - 128)


def _turned(x: jax.Array, orientation: int) -> jax.Array:
    turn: Any = functools.partial(pictures.turned, orientation=orientation)  # NumPy's or JAX's
    return jax.vmap(turn)(x)


def tables(quality: int) -> tuple[np.ndarray, np.ndarray]:
    """libjpeg's tables (luma, chroma), [8, 8] each, for a quality from 1 to 100."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    first, second = (np.clip((table * scale + 50) // 100, 1, 255) for table in (LUMA, CHROMA))
    return first, second


def quality_of(luma: np.ndarray, chroma: np.ndarray | None = None) -> tuple[int, bool]:
    """(the quality whose tables are nearest to these [8, 8], whether they are those)."""

    def distance(quality: int) -> float:
        pairs = zip(tables(quality), (luma, chroma))
        return sum(float(np.abs(own - other).sum()) for own, other in pairs if other is not None)

    best = min(range(1, 101), key=distance)
    return best, distance(best) == 0


def _coded(planes: jax.Array, table: np.ndarray) -> jax.Array:
    """Planes [B, H, W, C] centred at 0, encoded and decoded."""
    batch, height, width, channels = planes.shape
    padding = [(0, 0), (0, -height % 8), (0, -width % 8), (0, 0)]
    x = jnp.pad(planes, padding, mode="edge")
    rows, columns = x.shape[1] // 8, x.shape[2] // 8
    x = x.reshape(batch, rows, 8, columns, 8, channels)
    dct = jnp.asarray(_dct(), x.dtype)
    coefficients = jnp.einsum("brucvk,iu,jv->bricjk", x, dct, dct, precision="highest")
    steps = jnp.asarray(table, x.dtype)[:, None, :, None]
    coefficients = _round(coefficients / steps) * steps
    x = jnp.einsum("bricjk,iu,jv->brucvk", coefficients, dct, dct, precision="highest")
    x = x.reshape(batch, 8 * rows, 8 * columns, channels)[:, :height, :width]
    return _round(jnp.clip(x, -128, 127))


def _dct() -> np.ndarray:
    """The orthonormal DCT-II, [frequency, position]."""
    frequency, position = np.arange(8)[:, None], np.arange(8)
    matrix = np.cos((2 * position + 1) * frequency * np.pi / 16) / 2
    matrix[0] /= np.sqrt(2)
    return matrix


def _downsample(x: jax.Array) -> jax.Array:
    """Averages of 2x2 pixels."""
    x = jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)], mode="edge")
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def _upsample(x: jax.Array) -> jax.Array:
    """libjpeg's fancy upsampling: weights 3/4 and 1/4 of the nearest two pixels along each axis."""
    for axis in (1, 2):
        ends = [(1, 1) if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(x, ends, mode="edge")
        n = x.shape[axis]
        before, after = (jax.lax.slice_in_dim(padded, i, i + n, axis=axis) for i in (0, 2))
        both = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
        x = both.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
    return x


def _pixels(x: jax.Array) -> jax.Array:
    """Decoded values centred at 0 as 8-bit levels in [-1, 1]."""
    return _round(jnp.clip(x + 128, 0, 255)) / 127.5 - 1


def _dot(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    return jnp.einsum("...c,kc->...k", x, jnp.asarray(matrix, x.dtype), precision="highest")


def _round(x: jax.Array) -> jax.Array:
    """Round with a straight-through gradient."""
    return x + jax.lax.stop_gradient(jnp.round(x) - x)


def make(
    shape: Shape, rng: np.random.Generator, quality: int = 10, subsampling: str = "420",
    orientation: int = 1,
) -> Jpeg:  # fmt: skip
    """quality: 1 to 100, as in Pillow. subsampling: of chroma, 420 or 444. orientation: EXIF's."""
    if not 1 <= quality <= 100:
        raise ValueError(f"quality: {quality} is not in 1 to 100")
    if subsampling not in ("420", "444"):
        raise ValueError(f"subsampling: {subsampling!r} is not one of 420, 444")
    if not 1 <= orientation <= 8:
        raise ValueError(f"orientation: {orientation} is not in 1 to 8")
    if shape[2] not in (1, 3):
        raise ValueError(f"shape: JPEG supports 1 or 3 channels, not {shape[2]}")
    return Jpeg(quality, subsampling, orientation)
