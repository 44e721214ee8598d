"""Samplers: one file each, each with

    sample(denoise, schedule, times, x, keys, **options) -> x

denoise: x_t [B, H, W, C], t [B] -> the estimate of x.
times: [n + 1] decreasing, a concrete array; x starts at times[0], as sigma(1) eps if that is 1.
keys: [B] random keys; image i depends on its key alone.
The result is at times[-1]; where that is 0 and the schedule still has noise there (EDM), the exact
last step to the data, one more `denoise`, is added.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion.process import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, ends


def fresh_noise(keys: jax.Array, i: jax.Array | int, x: jax.Array) -> jax.Array:
    """Standard normal noise like x [B, H, W, C], draw number i of each image's own key [B]."""
    return jax.vmap(
        lambda key: jax.random.normal(jax.random.fold_in(key, i), x.shape[1:], x.dtype)
    )(keys)


def walk(
    step: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array],
    denoise: Denoise,
    schedule: Schedule,
    times: np.ndarray,
    x: jax.Array,
) -> jax.Array:
    """Apply x = step(x, t [B], s [B], i) along the grid, one compiled loop; then the clean end."""
    grid = jnp.asarray(times, x.dtype)
    batch = x.shape[:1]

    def body(x, step_ends):
        t, s, i = step_ends
        return step(x, jnp.broadcast_to(t, batch), jnp.broadcast_to(s, batch), i), None

    x, _ = jax.lax.scan(body, x, (grid[:-1], grid[1:], jnp.arange(len(times) - 1)))
    if times[-1] == 0 and ends(schedule)[1] > 0:
        x = denoise(x, jnp.zeros(batch, x.dtype))
    return x
