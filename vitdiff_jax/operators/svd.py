"""Singular value decompositions A = U diag(s) V^*, for operators that have a cheap one.

All parts have the shape of the clean image: `v_adjoint` gives V^* x, `u_adjoint` gives U^* y with
zeros where s is zero, both [B, H, W, C], complex for Fourier operators.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

Map = Callable[[jax.Array], jax.Array]
RTOL = 1e-3
"""Singular values below this, relative to the largest, are treated as zero in inverses."""


@dataclasses.dataclass(frozen=True)
class Svd:
    """values: s >= 0, [H, W, C]. v: z -> V z, real [B, H, W, C]."""

    values: jax.Array
    v_adjoint: Map
    v: Map
    u_adjoint: Map

    def nonzero(self, rtol: float = RTOL) -> jax.Array:
        """Which singular values are above `rtol` times the largest."""
        return self.values > rtol * self.values.max()

    def pseudo_inverse(self, y: jax.Array, rtol: float = RTOL) -> jax.Array:
        """A^+ y, [B, H, W, C]; singular values below `rtol` times the largest count as zero."""
        nonzero = self.nonzero(rtol)
        inverse = jnp.where(nonzero, 1 / jnp.where(nonzero, self.values, 1), 0)
        return self.v(self.u_adjoint(y) * inverse)


@runtime_checkable
class Decomposable(Protocol):
    """An operator with a cheap SVD."""

    def svd(self) -> Svd: ...
