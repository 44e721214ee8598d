"""Singular value decompositions A = U diag(s) V^* of operators that have a cheap one.

Everything lives on the grid of the clean image: `analyse` gives V^* x, `measured` gives U^* y with
zeros where s is zero, both [B, H, W, C], complex for Fourier operators.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

Map = Callable[[jax.Array], jax.Array]
LEAST = 1e-3
"""Smaller singular values, relative to the largest, count as zero where they would divide."""


@dataclasses.dataclass(frozen=True)
class Svd:
    """values: s >= 0, [H, W, C]. synthesise: V z, real [B, H, W, C]."""

    values: jax.Array
    analyse: Map
    synthesise: Map
    measured: Map

    def seen(self, least: float = LEAST) -> jax.Array:
        """Where an image is measured at all: singular values above `least` times the largest."""
        return self.values > least * self.values.max()

    def pseudo_inverse(self, y: jax.Array, least: float = LEAST) -> jax.Array:
        """A^+ y, [B, H, W, C]; singular values below `least` times the largest count as zero."""
        seen = self.seen(least)
        inverse = jnp.where(seen, 1 / jnp.where(seen, self.values, 1), 0)
        return self.synthesise(self.measured(y) * inverse)


@runtime_checkable
class Decomposable(Protocol):
    """An operator that has a cheap SVD."""

    def svd(self) -> Svd: ...
