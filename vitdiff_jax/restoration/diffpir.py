"""DiffPIR (arXiv:2305.08995): half-quadratic splitting with the denoiser as the prior.

    x_0 = argmin_v |y - A v|^2 + w |v - x_hat|^2,   w = strength noise_std^2 alpha^2 / sigma^2
    x_s = alpha_s x_0 + sigma_s (sqrt(1 - zeta) eps_hat + sqrt(zeta) z)

where eps_hat = (x_t - alpha_t x_0) / sigma_t is the noise in x_t given x_0.

Bias: the noise of y is assumed sqrt(strength) times as large, and each step replaces a fraction
zeta of the noise of x_t, however small the step. For Gaussian images, as the number of steps grows,
the samples have the posterior mean for that larger noise and (1 + sqrt(1 - zeta)) / 2 of its
covariance, 0.92 for zeta = 0.3; likewise for the prior where the operator is zero. Without noise
(w -> 0) y is reproduced.
"""

import jax
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.operators import Operator
from vitdiff_jax.operators.inverse import prox_l2
from vitdiff_jax.restoration import Traits
from vitdiff_jax.samplers import fresh_noise, sampling_loop

TRAITS = Traits("linear", consistent=True)


def nfe(steps: int, **_) -> int:
    """One per step."""
    return steps


def restore(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array, *,
    operator: Operator, y: jax.Array, noise_std: jax.Array | float,
    strength: float = 8.0, zeta: float = 0.3,
) -> jax.Array:  # fmt: skip
    """See `restoration`. strength: of the prior (the paper's lambda). zeta: of fresh noise."""

    def estimate(x_t, t):
        alpha, sigma = schedule.alpha_sigma(t)
        weight = strength * (noise_std * alpha / sigma) ** 2
        return prox_l2(operator, y, denoise(x_t, t), weight)

    def step(x, t, s, i):
        alpha_t, sigma_t = (per_image(a) for a in schedule.alpha_sigma(t))
        alpha_s, sigma_s = (per_image(a) for a in schedule.alpha_sigma(s))
        x_0 = estimate(x, t)
        eps = (x - alpha_t * x_0) / sigma_t
        noise = np.sqrt(1 - zeta) * eps + np.sqrt(zeta) * fresh_noise(keys, i, x)
        return alpha_s * x_0 + sigma_s * noise

    return sampling_loop(step, estimate, schedule, times, x)
