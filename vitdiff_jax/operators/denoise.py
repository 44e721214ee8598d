"""The identity, y = x, so that only noise is added. For denoising."""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.operators import Shape, register, static
from vitdiff_jax.operators.svd import Svd


@register
class Identity:
    """y = x."""

    shape: Shape = static()
    linear: bool = static(default=True)

    def forward(self, x: jax.Array) -> jax.Array:
        return x

    def svd(self) -> Svd:
        return Svd(jnp.ones(self.shape), lambda x: x, lambda z: z, lambda y: y)


def make(shape: Shape, rng: np.random.Generator) -> Identity:
    """The identity on images of this shape."""
    return Identity(shape)
