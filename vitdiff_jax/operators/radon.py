"""Computed tomography with a parallel beam: sums along lines at some angles (Radon transform).

The image is turned about its middle pixel by bilinear interpolation, zero outside, and its columns
are added up, divided by their number: y [B, W, angles, C], scikit-image's sinogram / N.

Places are whole numbers of a tiny part of a pixel. In floating point XLA may compute a place twice,
for the index and for the weight, with another rounding; at 45 degrees, where places are whole
pixels, the two floors then differed and a sample came from the next pixel (seen in float64).
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.operators import Shape, register, static


@register
class Radon:
    """directions: cosine and sine of the angles, [A, 2]."""

    directions: jax.Array | np.ndarray
    linear: bool = static(default=True)
    ill_posed = True

    def forward(self, x: jax.Array) -> jax.Array:
        whole = jnp.int64 if x.dtype == jnp.float64 else jnp.int32
        bits = jnp.iinfo(whole).bits - 2 - x.shape[1].bit_length()  # N pixels fit beside the sign
        turns = jnp.round(jnp.asarray(self.directions, x.dtype) * 2.0**bits).astype(whole)

        def one(turn):
            return _turned(x, turn, bits).mean(1)  # [B, W, C]

        return jnp.moveaxis(jax.lax.map(one, turns), 0, 2)


def _turned(x: jax.Array, turn: jax.Array, bits: int) -> jax.Array:
    """Square images [B, N, N, C] turned about pixel N // 2; turn: cosine and sine times 2^bits."""
    n = x.shape[1]
    place = jnp.arange(n, dtype=turn.dtype) - n // 2
    down, across = place[:, None], place
    top, below = _split(turn[0] * down - turn[1] * across, bits, x.dtype)
    left, right = _split(turn[1] * down + turn[0] * across, bits, x.dtype)
    found = jnp.zeros_like(x)
    for i, high in ((0, 1 - below), (1, below)):
        for j, wide in ((0, 1 - right), (1, right)):
            row, column = top + n // 2 + i, left + n // 2 + j
            inside = (row >= 0) & (row < n) & (column >= 0) & (column < n)
            weight = jnp.where(inside, high * wide, 0)
            index = (jnp.clip(a, 0, n - 1) for a in (row, column))
            found += weight[..., None] * x[:, *index]
    return found


def _split(place: jax.Array, bits: int, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """The whole pixels of a place, and the part in [0, 1] of the next one."""
    pixel = place >> bits
    return pixel, (place - (pixel << bits)).astype(dtype) * 2.0**-bits


def make(shape: Shape, rng: np.random.Generator, angles: int = 60, of: int = 180) -> Radon:
    """`angles` evenly spaced ones in half a turn, taken from a scan of `of`. Square images."""
    if shape[0] != shape[1]:
        raise ValueError(f"shape: {shape[0]}x{shape[1]} pixels are not square")
    if not 0 < angles <= of:
        raise ValueError(f"angles: {angles} is not in 1 to {of}")
    radians = np.arange(angles) * of // angles * np.pi / of
    return Radon(np.stack([np.cos(radians), np.sin(radians)], 1))
