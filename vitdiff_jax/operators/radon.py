"""Computed tomography with a parallel beam: sums along lines at some angles (Radon transform).

The image is turned about its middle pixel by bilinear interpolation, zero outside, and its columns
are added up, divided by their number: y [B, W, angles, C], scikit-image's sinogram / N.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.operators import Shape, register, static


@register
class Radon:
    """angles: in radians, [A]."""

    angles: jax.Array | np.ndarray
    linear: bool = static(default=True)

    def forward(self, x: jax.Array) -> jax.Array:
        def one(angle):
            return _turned(x, angle).mean(1)  # [B, W, C]

        return jnp.moveaxis(jax.lax.map(one, jnp.asarray(self.angles, x.dtype)), 0, 2)


def _turned(x: jax.Array, angle: jax.Array) -> jax.Array:
    """Square images [B, N, N, C] turned about pixel N // 2."""
    n = x.shape[1]
    middle, cos, sin = n // 2, jnp.cos(angle), jnp.sin(angle)
    down, across = jnp.meshgrid(jnp.arange(n) - middle, jnp.arange(n) - middle, indexing="ij")
    rows, columns = cos * down - sin * across + middle, sin * down + cos * across + middle
    top, left = jnp.floor(rows), jnp.floor(columns)
    found = jnp.zeros_like(x)
    for i in (0, 1):
        for j in (0, 1):
            row, column = top + i, left + j
            weight = (1 - jnp.abs(rows - row)) * (1 - jnp.abs(columns - column))
            inside = (row >= 0) & (row < n) & (column >= 0) & (column < n)
            index = (jnp.clip(a, 0, n - 1).astype(int) for a in (row, column))
            weight = jnp.where(inside, weight, 0).astype(x.dtype)
            found += weight[..., None] * x[:, *index]
    return found


def make(shape: Shape, rng: np.random.Generator, angles: int = 60, of: int = 180) -> Radon:
    """`angles` evenly spaced ones in half a turn, taken from a scan of `of`. Square images."""
    if shape[0] != shape[1]:
        raise ValueError(f"shape: {shape[0]}x{shape[1]} pixels are not square")
    if not 0 < angles <= of:
        raise ValueError(f"angles: {angles} is not in 1 to {of}")
    which = np.arange(angles) * of // angles
    return Radon((which * np.pi / of).astype(np.float32))
