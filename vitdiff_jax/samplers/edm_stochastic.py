"""EDM's stochastic sampler (arXiv:2206.00364, algorithm 2), on any schedule. Second order.

In the paper's variables, y = x_t / alpha and the noise level r = sigma / alpha, a step first adds
noise up to r_hat = (1 + gamma) r ("churn"), then takes a step of Heun's method on dy/dr = eps_hat.
With x_hat and x_hat' the estimates at r_hat and at the end of the Euler step, that is

    y_s = x_hat + r_s eps_hat + (r_hat / r_s - 1) / 2 (x_hat' - x_hat)

The last step, to r = 0, is an Euler step. From r = infinity the last weight is 1/2 instead, the
trapezoidal rule in 1 / r, and there is no churn. r_hat is limited to the schedule's range, r(1).
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.samplers import fresh_noise, needs_final_denoise, sampling_loop
from vitdiff_jax.samplers.ancestral import coefficients


def nfe(steps: int, **_) -> int:
    """Two per step, one in the last."""
    return 2 * steps - 1


def churned(
    schedule: Schedule, t: jax.Array, gamma: float, s_min: float, s_max: float
) -> jax.Array:
    """The time [B] at which sigma / alpha is 1 + gamma times that at t [B], if that is in range."""
    alpha, sigma = schedule.alpha_sigma(t)
    # False at alpha = 0, even if s_max is infinite.
    wanted = (s_min * alpha <= sigma) & (sigma <= s_max * alpha)
    r = sigma / jnp.where(alpha > 0, alpha, 1) * (1 + gamma)
    return jnp.where(wanted, jnp.clip(schedule.t_from_logsnr(-2 * jnp.log(r)), t, 1), t)


def sample(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array, *,
    s_churn: float = 40.0, s_min: float = 0.05, s_max: float = 50.0, s_noise: float = 1.003,
) -> jax.Array:  # fmt: skip
    """See `samplers`. The defaults are the paper's for ImageNet at 64 px.

    s_churn: gamma times the number of steps, with gamma at most sqrt(2) - 1; 0 is deterministic.
    s_min, s_max: range of sigma / alpha with churn. s_noise: scale of the added noise.
    """
    steps = len(times) - 1 + needs_final_denoise(schedule, times)
    gamma = min(s_churn / steps, np.sqrt(2) - 1)

    def churn(x, t, i):
        up = churned(schedule, t, gamma, s_min, s_max)
        alpha_t, sigma_t = schedule.alpha_sigma(t)
        alpha, sigma = schedule.alpha_sigma(up)
        kept = jnp.where(up > t, alpha / jnp.where(alpha_t > 0, alpha_t, 1), 1)
        std = s_noise * jnp.sqrt(jnp.maximum(sigma**2 - (kept * sigma_t) ** 2, 0))
        return per_image(kept) * x + per_image(std) * fresh_noise(keys, i, x), up

    def step(x, t, s, i):
        if gamma > 0:
            x, t = churn(x, t, i)
        a, b, _ = coefficients(schedule, t, s, eta=0.0)
        x_hat = denoise(x, t)
        end = a * x_hat + b * x  # an Euler step in r is a DDIM step
        alpha_t, sigma_t = schedule.alpha_sigma(t)
        alpha_s, sigma_s = schedule.alpha_sigma(s)

        def correct():
            pure_noise = alpha_t == 0
            ratio = sigma_t / jnp.where(pure_noise, 1, alpha_t) * alpha_s / sigma_s  # r_hat / r_s
            weight = alpha_s * jnp.where(pure_noise, 1, ratio - 1) / 2
            return end + per_image(weight) * (denoise(end, s) - x_hat)

        return jax.lax.cond(sigma_s[0] > 0, correct, lambda: end)

    return sampling_loop(step, denoise, schedule, times, x)
