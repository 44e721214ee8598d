"""Singular value decompositions A = U diag(s) V^* of operators that have a cheap one.

Everything lives on the grid of the clean image: `analyse` gives V^* x, `measured` gives U^* y with
zeros where s is zero, both [B, H, W, C], complex for Fourier operators.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

Map = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Svd:
    """values: s >= 0, [H, W, C]. synthesise: V z, real [B, H, W, C]."""

    values: jax.Array
    analyse: Map
    synthesise: Map
    measured: Map

    def pseudo_inverse(self, y: jax.Array, least: float = 1e-3) -> jax.Array:
        """A^+ y, [B, H, W, C]; singular values below `least` times the largest count as zero."""
        inverse = _inverse(self.values, least)
        return self.synthesise(self.measured(y) * inverse)


def _inverse(values: jax.Array, least: float) -> jax.Array:
    kept = values > least * values.max()
    return jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
