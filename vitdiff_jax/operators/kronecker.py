"""Linear maps that act separately on rows, columns and channels: Kronecker products.

Block averages, antialiased resizing, separable blurs and conversion to grey are such maps. Their
SVD follows from those of three small matrices.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.operators.svd import Svd


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Kronecker:
    """y[i, j, k] = sum rows[i, h] columns[j, w] channels[k, c] x[h, w, c]; no axis grows.

    The matrices are compile-time constants: nothing in them is random, so that one program serves
    all operators of a kind, and their SVD is computed once, on the host.
    """

    rows: np.ndarray
    columns: np.ndarray
    channels: np.ndarray
    linear: bool = True

    def _matrices(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.rows, self.columns, self.channels

    def __hash__(self):
        return hash(tuple(a.tobytes() for a in self._matrices()))

    def __eq__(self, other):
        return isinstance(other, Kronecker) and all(
            map(np.array_equal, self._matrices(), other._matrices())
        )

    def forward(self, x: jax.Array) -> jax.Array:
        return _apply(x, self.rows, self.columns, self.channels)

    def svd(self) -> Svd:
        """The SVD, computed on the host in float64."""
        parts = [_padded(a.astype(np.float64)) for a in self._matrices()]
        (u, s, v) = zip(*parts)
        values = s[0][:, None, None] * s[1][:, None] * s[2]  # [H, W, C]
        return Svd(
            jnp.asarray(values),
            v_adjoint=lambda x: _apply(x, *v),
            v=lambda z: _apply(z, *(a.T for a in v)),
            u_adjoint=lambda y: _apply(y, *u),
        )


def _apply(x: jax.Array, rows, columns, channels) -> jax.Array:
    """Apply each of the three matrices to its axis of [B, H, W, C]."""
    highest = jax.lax.Precision.HIGHEST
    rows, columns, channels = (jnp.asarray(a, x.dtype) for a in (rows, columns, channels))
    dot = functools.partial(jnp.einsum, precision=highest)
    return dot("nhwc,ih,jw,kc->nijk", x, rows, columns, channels)


def _padded(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(U^*, s, V^*) of a matrix [h, H], with U^* and s zero-padded to H rows."""
    h, size = matrix.shape
    u, s, v = np.linalg.svd(matrix, full_matrices=True)
    values, u_t = np.zeros(size), np.zeros((size, h))
    values[: len(s)], u_t[: len(s)] = s, u.T[: len(s)]
    return u_t, values, v
