"""Clipped dynamic range: y = clip(2 x, -1, 1), as in DAPS (arXiv:2407.01521). Not linear."""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.operators import Shape, register, static


@register
class Clipped:
    """y = clip(gain x, -1, 1)."""

    gain: float = static()
    linear: bool = static(default=False)

    def forward(self, x: jax.Array) -> jax.Array:
        return jnp.clip(self.gain * x, -1, 1)


def make(shape: Shape, rng: np.random.Generator, gain: float = 2.0) -> Clipped:
    """gain: values above 1 clip highlights and shadows."""
    if gain <= 0:
        raise ValueError(f"gain: {gain} is not positive")
    return Clipped(gain)
