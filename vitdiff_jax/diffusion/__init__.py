"""The diffusion process: pure functions of arrays, without networks or data."""

from collections.abc import Callable

import jax

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
"""(x_t [B, H, W, C], t [B]) -> E[x | x_t] [B, H, W, C], values in [-1, 1] units."""
