"""Samplers: DDIM, Heun, DPM-Solver++, UniPC, ..., one file each.

Each file has

    sample(denoise, schedule, times, x, keys, **options) -> x
    nfe(steps, **options) -> int    number of function evaluations: network calls per image

denoise: x_t [B, H, W, C], t [B] -> the estimate of x.
times: [n + 1], decreasing, a concrete array; x is x_t at times[0], so sigma(1) eps at t = 1.
keys: [B] random keys; image i depends on its key alone.
The result is x_t at times[-1]. Where that is 0 and sigma(0) > 0 (EDM), a final denoising step to
the data, one more call of `denoise`, is appended.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, ends

_trajectories: contextvars.ContextVar[list[jax.Array] | None] = contextvars.ContextVar(
    "trajectories", default=None
)


def fresh_noise(keys: jax.Array, i: jax.Array | int, x: jax.Array) -> jax.Array:
    """Standard normal noise like x [B, H, W, C], from each image's key [B] folded with i."""
    return jax.vmap(
        lambda key: jax.random.normal(jax.random.fold_in(key, i), x.shape[1:], x.dtype)
    )(keys)


@contextlib.contextmanager
def record_trajectory() -> Iterator[list[jax.Array]]:
    """Record the sampling trajectories of the loops run inside, one array per loop.

    Each is x_t at all times [n + 1, B, H, W, C], from the initial noise to the result, or one more
    with a final denoising step. Recording happens at trace time: use the context, and return what
    is in the list, inside of the compiled function. Without it, nothing is stored.

        def sample_with_trajectory(x, keys):
            with record_trajectory() as trajectories:
                x = sample(denoise, schedule, times, x, keys)
            return x, trajectories[0]
    """
    trajectories: list[jax.Array] = []
    token = _trajectories.set(trajectories)
    try:
        yield trajectories
    finally:
        _trajectories.reset(token)


def needs_final_denoise(schedule: Schedule, times: np.ndarray) -> bool:
    """Whether a final denoising step to the data follows the grid."""
    return bool(times[-1] == 0 and ends(schedule)[1] > 0)


def sampling_loop(
    step: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array],
    denoise: Denoise,
    schedule: Schedule,
    times: np.ndarray,
    x: jax.Array,
) -> jax.Array:
    """Scan x = step(x, t [B], s [B], i) over the grid, then the final denoising step if needed."""

    def without_history(x, t, s, i, history):
        return step(x, t, s, i), history

    return multistep_loop(without_history, (), denoise, schedule, times, x)


def multistep_loop(
    step: Callable[[jax.Array, jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]],
    history: Any,
    denoise: Denoise,
    schedule: Schedule,
    times: np.ndarray,
    x: jax.Array,
) -> jax.Array:
    """`sampling_loop` for multistep methods: x, history = step(x, t [B], s [B], i, history)."""
    grid = jnp.asarray(times, x.dtype)
    batch, trajectories = x.shape[:1], _trajectories.get()

    def body(carry, inputs):
        t, s, i = inputs
        x, history = carry
        x, history = step(x, jnp.broadcast_to(t, batch), jnp.broadcast_to(s, batch), i, history)
        return (x, history), None if trajectories is None else x

    steps = grid[:-1], grid[1:], jnp.arange(len(times) - 1)
    (last, _), states = jax.lax.scan(body, (x, history), steps)
    trajectory = [x[None], states]
    if needs_final_denoise(schedule, times):
        last = denoise(last, jnp.zeros(batch, x.dtype))
        trajectory.append(last[None])
    if trajectories is not None:
        trajectories.append(jnp.concatenate(trajectory))  # [n + 1 or n + 2, B, H, W, C]
    return last
