"""Ancestral sampling (DDPM, arXiv:2006.11239), between any times of any schedule.

A step samples q(x_s | x_t, x_hat), the Gaussian posterior of the forward process. With
r = alpha_t / alpha_s and sigma_ts^2 = sigma_t^2 - r^2 sigma_s^2 it has

    mean = (r sigma_s^2 x_t + alpha_s sigma_ts^2 x_hat) / sigma_t^2
    variance = sigma_ts^2 sigma_s^2 / sigma_t^2        ("fixed small")
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.samplers import fresh_noise, sampling_loop


def coefficients(
    schedule: Schedule, t: jax.Array, s: jax.Array, eta: float = 1.0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(a, b, tau), each [B, 1, 1, 1], of the step x_s = a x_hat + b x_t + tau z from t to s [B].

    eta: tau relative to the posterior's standard deviation; 0 is DDIM (arXiv:2010.02502).
    """
    alpha_t, sigma_t = schedule.alpha_sigma(t)
    alpha_s, sigma_s = schedule.alpha_sigma(s)
    # r sigma_s / sigma_t <= 1: the fraction of the noise at t that was already present at s.
    kept = (alpha_t / alpha_s) * (sigma_s / sigma_t)
    fresh = eta**2 * jnp.maximum(1 - kept**2, 0)  # as a fraction of sigma_s^2
    rest = jnp.sqrt(1 - fresh)
    a, b, tau = alpha_s * (1 - kept * rest), sigma_s / sigma_t * rest, sigma_s * jnp.sqrt(fresh)
    return per_image(a), per_image(b), per_image(tau)


def nfe(steps: int, **_) -> int:
    """One per step."""
    return steps


def sample(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array
) -> jax.Array:
    """See `samplers`."""

    def step(x, t, s, i):
        a, b, tau = coefficients(schedule, t, s)
        return a * denoise(x, t) + b * x + tau * fresh_noise(keys, i, x)

    return sampling_loop(step, denoise, schedule, times, x)
