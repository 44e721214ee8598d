"""Ancestral sampling (DDPM, arXiv:2006.11239) between any two times of any schedule.

Draws from q(x_s | x_t, x_hat), the Gaussian posterior of the forward process. With
r = alpha_t / alpha_s and the step's noise sigma_ts^2 = sigma_t^2 - r^2 sigma_s^2 it has

    mean = (r sigma_s^2 x_t + alpha_s sigma_ts^2 x_hat) / sigma_t^2
    variance = sigma_ts^2 sigma_s^2 / sigma_t^2        ("fixed small")
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion.process import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.samplers import walk


def sample(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array
) -> jax.Array:
    """See `samplers`."""

    def step(x, t, s, i):
        alpha_t, sigma_t = schedule.alpha_sigma(t)
        alpha_s, sigma_s = schedule.alpha_sigma(s)
        # r sigma_s / sigma_t, at most 1: the share of the noise at t that is left from s
        kept = (alpha_t / alpha_s) * (sigma_s / sigma_t)
        fresh = jnp.maximum(1 - kept**2, 0)  # sigma_ts^2 / sigma_t^2
        mean = per_image(kept * sigma_s / sigma_t) * x
        mean = mean + per_image(alpha_s * fresh) * denoise(x, t)
        noise = jax.vmap(
            lambda key: jax.random.normal(jax.random.fold_in(key, i), x.shape[1:], x.dtype)
        )(keys)
        return mean + per_image(sigma_s * jnp.sqrt(fresh)) * noise

    return walk(step, denoise, schedule, times, x)
