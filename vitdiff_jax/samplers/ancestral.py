"""Ancestral sampling (DDPM, arXiv:2006.11239) between any two times of any schedule.

Draws from q(x_s | x_t, x_hat), the Gaussian posterior of the forward process. With
r = alpha_t / alpha_s and the step's noise sigma_ts^2 = sigma_t^2 - r^2 sigma_s^2 it has

    mean = (r sigma_s^2 x_t + alpha_s sigma_ts^2 x_hat) / sigma_t^2
    variance = sigma_ts^2 sigma_s^2 / sigma_t^2        ("fixed small")
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.samplers import fresh_noise, walk


def weights(
    schedule: Schedule, t: jax.Array, s: jax.Array, eta: float = 1.0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(a, b, tau), each [B, 1, 1, 1], of a step x_s = a x_hat + b x_t + tau z from t to s [B].

    eta: the fresh noise tau as a share of the posterior's; with 0 it is DDIM (arXiv:2010.02502).
    """
    alpha_t, sigma_t = schedule.alpha_sigma(t)
    alpha_s, sigma_s = schedule.alpha_sigma(s)
    # r sigma_s / sigma_t, at most 1: the share of the noise at t that is left from s
    kept = (alpha_t / alpha_s) * (sigma_s / sigma_t)
    fresh = eta**2 * jnp.maximum(1 - kept**2, 0)  # of sigma_s^2
    rest = jnp.sqrt(1 - fresh)
    a, b, tau = alpha_s * (1 - kept * rest), sigma_s / sigma_t * rest, sigma_s * jnp.sqrt(fresh)
    return per_image(a), per_image(b), per_image(tau)


def calls(steps: int, **_) -> int:
    """One a step."""
    return steps


def sample(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array
) -> jax.Array:
    """See `samplers`."""

    def step(x, t, s, i):
        a, b, tau = weights(schedule, t, s)
        return a * denoise(x, t) + b * x + tau * fresh_noise(keys, i, x)

    return walk(step, denoise, schedule, times, x)
