"""DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2): second order with one network call a step.

With l = log(alpha / sigma), h = l_s - l_t and h' the step before,

    x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - exp(-h)) (x_hat + (h / h') (x_hat - x_hat') / 2)

in which x_hat is drawn out along a line in l. The first step has no past, and the last one, to
sigma = 0, has h = infinity: both are first-order (DDIM), which from alpha = 0 and to sigma = 0 is
as good as any, and exact on a point mass.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, logsnr, per_image
from vitdiff_jax.samplers import walk_with_past
from vitdiff_jax.samplers.ancestral import weights


def calls(steps: int, **_) -> int:
    """One a step."""
    return steps


def step_length(schedule: Schedule, t: jax.Array, s: jax.Array) -> jax.Array:
    """h [B, 1, 1, 1] from t to s [B]; 0, so that nothing is drawn out, on the step to sigma = 0.

    From alpha = 0 it is long but finite, as log-SNRs are clipped.
    """
    h = (logsnr(schedule, s) - logsnr(schedule, t)) / 2
    return per_image(jnp.where(schedule.alpha_sigma(s)[1] > 0, h, 0))


def relative(h: jax.Array | float, before: jax.Array) -> jax.Array:
    """h / before; 0 where the step before was infinitely long or had no length."""
    return jnp.where((before > 0) & (before < jnp.inf), h / before, 0)


def no_past(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(x_hat', h') before the first step: infinitely long ago."""
    return jnp.zeros_like(x), jnp.full((len(x), 1, 1, 1), jnp.inf, x.dtype)


def sample(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array
) -> jax.Array:
    """See `samplers`."""

    def step(x, t, s, i, past):
        older, before = past
        a, b, _ = weights(schedule, t, s, eta=0.0)
        h = step_length(schedule, t, s)
        x_hat = denoise(x, t)
        change = relative(h, before) * (x_hat - older)
        return a * (x_hat + change / 2) + b * x, (x_hat, h)

    return walk_with_past(step, no_past(x), denoise, schedule, times, x)
