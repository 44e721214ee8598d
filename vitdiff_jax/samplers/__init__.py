"""Samplers: DDIM, Heun, DPM-Solver++, UniPC, ..., one file each.

Each file has

    sample(denoise, schedule, times, x, keys, **options) -> x
    calls(steps, **options) -> int       network calls for one image, on a grid of that many steps

denoise: x_t [B, H, W, C], t [B] -> the estimate of x.
times: [n + 1] decreasing, a concrete array; x starts at times[0], as sigma(1) eps if that is 1.
keys: [B] random keys; image i depends on its key alone.
The result is at times[-1]; where that is 0 and the schedule still has noise there (EDM), the exact
last step to the data, one more `denoise`, is added.
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

_recorded: contextvars.ContextVar[list[jax.Array] | None] = contextvars.ContextVar(
    "recorded", default=None
)


def fresh_noise(keys: jax.Array, i: jax.Array | int, x: jax.Array) -> jax.Array:
    """Standard normal noise like x [B, H, W, C], draw number i of each image's own key [B]."""
    return jax.vmap(
        lambda key: jax.random.normal(jax.random.fold_in(key, i), x.shape[1:], x.dtype)
    )(keys)


@contextlib.contextmanager
def recording() -> Iterator[list[jax.Array]]:
    """What walks inside pass through, on request: a list that each of them adds one array to.

    That is x at all times [n + 1, B, H, W, C], from the start to the result, a clean end included
    (one more). It is decided while tracing: open it, and return what is in the list, inside the
    function that is compiled. Without it nothing is kept and nothing is paid.

        def draw(x, keys):
            with recording() as path:
                x = sample(denoise, schedule, times, x, keys)
            return x, path[0]
    """
    path: list[jax.Array] = []
    token = _recorded.set(path)
    try:
        yield path
    finally:
        _recorded.reset(token)


def has_clean_end(schedule: Schedule, times: np.ndarray) -> bool:
    """Whether the exact last step to the data comes after the grid."""
    return bool(times[-1] == 0 and ends(schedule)[1] > 0)


def walk(
    step: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array],
    denoise: Denoise,
    schedule: Schedule,
    times: np.ndarray,
    x: jax.Array,
) -> jax.Array:
    """Apply x = step(x, t [B], s [B], i) along the grid, one compiled loop; then the clean end."""

    def forgetful(x, t, s, i, past):
        return step(x, t, s, i), past

    return walk_with_past(forgetful, (), denoise, schedule, times, x)


def walk_with_past(
    step: Callable[[jax.Array, jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]],
    past: Any,
    denoise: Denoise,
    schedule: Schedule,
    times: np.ndarray,
    x: jax.Array,
) -> jax.Array:
    """`walk` for steps that hand arrays on: x, past = step(x, t [B], s [B], i, past)."""
    grid = jnp.asarray(times, x.dtype)
    batch, path = x.shape[:1], _recorded.get()

    def body(carry, step_ends):
        t, s, i = step_ends
        x, past = carry
        x, past = step(x, jnp.broadcast_to(t, batch), jnp.broadcast_to(s, batch), i, past)
        return (x, past), None if path is None else x

    steps = grid[:-1], grid[1:], jnp.arange(len(times) - 1)
    (last, _), passed = jax.lax.scan(body, (x, past), steps)
    places = [x[None], passed]
    if has_clean_end(schedule, times):
        last = denoise(last, jnp.zeros(batch, x.dtype))
        places.append(last[None])
    if path is not None:
        path.append(jnp.concatenate(places))  # [n + 1 or n + 2, B, H, W, C]
    return last
