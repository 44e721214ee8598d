"""The diffusion process: pure functions of arrays, without networks or data."""

from collections.abc import Callable

import jax

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
"""(x_t [B, H, W, C], t [B]) -> E[x | x_t] [B, H, W, C], values in [-1, 1] units."""


def nth_call(denoise: Denoise, i: jax.Array | int) -> Denoise:
    """The denoiser of call i, for methods that call it several times at one t.

    Tiles lie elsewhere in each call, from t and this number (`shifted_tiles`); to other denoisers
    all calls are the same.
    """
    nth = getattr(denoise, "nth_call", None)
    return nth(i) if nth else denoise
