"""Parallel-beam computed tomography: the Radon transform at a set of angles.

The image is rotated about its centre pixel with bilinear interpolation, zero outside, and averaged
over its columns: y [B, W, angles, C], scikit-image's sinogram / N.

Positions are fixed-point numbers. In floating point XLA may compute a position twice, for the index
and for the weight, with different rounding; at 45 degrees, where positions are integers, the two
floors then differed and a sample came from the neighbouring pixel (observed in float64).
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
        integer = jnp.int64 if x.dtype == jnp.float64 else jnp.int32
        bits = jnp.iinfo(integer).bits - 2 - x.shape[1].bit_length()  # room for N and the sign
        rotations = jnp.round(jnp.asarray(self.directions, x.dtype) * 2.0**bits).astype(integer)

        def project(rotation):
            return _rotated(x, rotation, bits).mean(1)  # [B, W, C]

        return jnp.moveaxis(jax.lax.map(project, rotations), 0, 2)


def _rotated(x: jax.Array, rotation: jax.Array, bits: int) -> jax.Array:
    """Square images [B, N, N, C] rotated about pixel N // 2; rotation: (cos, sin) times 2^bits."""
    n = x.shape[1]
    position = jnp.arange(n, dtype=rotation.dtype) - n // 2
    down, across = position[:, None], position
    top, below = _split(rotation[0] * down - rotation[1] * across, bits, x.dtype)
    left, right = _split(rotation[1] * down + rotation[0] * across, bits, x.dtype)
    found = jnp.zeros_like(x)
    for i, high in ((0, 1 - below), (1, below)):
        for j, wide in ((0, 1 - right), (1, right)):
            row, column = top + n // 2 + i, left + n // 2 + j
            inside = (row >= 0) & (row < n) & (column >= 0) & (column < n)
            weight = jnp.where(inside, high * wide, 0)
            index = (jnp.clip(a, 0, n - 1) for a in (row, column))
            found += weight[..., None] * x[:, *index]
    return found


def _split(position: jax.Array, bits: int, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """The integer part of a fixed-point position and its fraction in [0, 1]."""
    pixel = position >> bits
    return pixel, (position - (pixel << bits)).astype(dtype) * 2.0**-bits


def make(shape: Shape, rng: np.random.Generator, angles: int = 60, of: int = 180) -> Radon:
    """angles: the number of evenly spaced angles kept of a scan of `of` over 180 degrees.

    Images must be square.
    """
    if shape[0] != shape[1]:
        raise ValueError(f"shape: {shape[0]}x{shape[1]} pixels are not square")
    if not 0 < angles <= of:
        raise ValueError(f"angles: {angles} is not in 1 to {of}")
    radians = np.arange(angles) * of // angles * np.pi / of
    return Radon(np.stack([np.cos(radians), np.sin(radians)], 1))
