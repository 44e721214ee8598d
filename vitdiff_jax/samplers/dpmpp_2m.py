"""DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2): second order with one network call per step.

With l = log(alpha / sigma), h = l_s - l_t and primes for the previous step,

    x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - exp(-h)) (x_hat + (h / h') (x_hat - x_hat') / 2)

which extrapolates x_hat linearly in l. The first step has no history, and the last one, to
sigma = 0, has h = infinity: both are first order (DDIM), which is exact for a point mass and as
good as any other choice from alpha = 0 and to sigma = 0.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, logsnr, per_image
from vitdiff_jax.samplers import multistep_loop
from vitdiff_jax.samplers.ancestral import coefficients


def nfe(steps: int, **_) -> int:
    """One per step."""
    return steps


def step_length(schedule: Schedule, t: jax.Array, s: jax.Array) -> jax.Array:
    """h [B, 1, 1, 1] from t to s [B]; 0 for the step to sigma = 0, which then does not extrapolate.

    From alpha = 0 it is large but finite, as log-SNRs are clipped.
    """
    h = (logsnr(schedule, s) - logsnr(schedule, t)) / 2
    return per_image(jnp.where(schedule.alpha_sigma(s)[1] > 0, h, 0))


def step_ratio(h: jax.Array | float, h_prev: jax.Array) -> jax.Array:
    """h / h_prev; 0 where h_prev is 0 or infinite."""
    return jnp.where((h_prev > 0) & (h_prev < jnp.inf), h / h_prev, 0)


def empty_history(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(x_hat', h') for the first step: an infinite step before it."""
    return jnp.zeros_like(x), jnp.full((len(x), 1, 1, 1), jnp.inf, x.dtype)


def sample(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array
) -> jax.Array:
    """See `samplers`."""

    def step(x, t, s, i, history):
        x_hat_prev, h_prev = history
        a, b, _ = coefficients(schedule, t, s, eta=0.0)
        h = step_length(schedule, t, s)
        x_hat = denoise(x, t)
        change = step_ratio(h, h_prev) * (x_hat - x_hat_prev)
        return a * (x_hat + change / 2) + b * x, (x_hat, h)

    return multistep_loop(step, empty_history(x), denoise, schedule, times, x)
