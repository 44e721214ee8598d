"""DiffPIR (arXiv:2305.08995): half-quadratic splitting with the denoiser as the prior.

    x_0 = argmin_v |y - A v|^2 + w |v - x_hat|^2,   w = strength noise_std^2 alpha^2 / sigma^2
    x_s = alpha_s x_0 + sigma_s (sqrt(1 - zeta) eps_hat + sqrt(zeta) z)

where eps_hat = (x_t - alpha_t x_0) / sigma_t is the noise that x_0 leaves in x_t.

Bias: y's noise is taken for sqrt(strength) times as large, and each step replaces the share zeta of
x_t's, however small the step. For Gaussian images, as the steps grow, what comes out has the mean
of the posterior for that larger noise, and (1 + sqrt(1 - zeta)) / 2 of its covariance, 0.92 for
0.3; so has all of the image where the operator is zero. Without noise (w -> 0) y is reproduced.
"""

import jax
import numpy as np

from vitdiff_jax.diffusion.process import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.operators import Operator
from vitdiff_jax.operators.inverse import nearest
from vitdiff_jax.restoration import Traits
from vitdiff_jax.samplers import fresh_noise, walk

TRAITS = Traits("linear", consistent=True)


def calls(steps: int, **_) -> int:
    """One a step."""
    return steps


def restore(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array, *,
    operator: Operator, y: jax.Array, noise_std: jax.Array | float,
    strength: float = 8.0, zeta: float = 0.3,
) -> jax.Array:  # fmt: skip
    """See `restoration`. strength: of the prior (the paper's lambda). zeta: of fresh noise."""

    def explained(x_t, t):
        alpha, sigma = schedule.alpha_sigma(t)
        weight = strength * (noise_std * alpha / sigma) ** 2
        return nearest(operator, y, denoise(x_t, t), weight)

    def step(x, t, s, i):
        alpha_t, sigma_t = (per_image(a) for a in schedule.alpha_sigma(t))
        alpha_s, sigma_s = (per_image(a) for a in schedule.alpha_sigma(s))
        x_0 = explained(x, t)
        eps = (x - alpha_t * x_0) / sigma_t
        noise = np.sqrt(1 - zeta) * eps + np.sqrt(zeta) * fresh_noise(keys, i, x)
        return alpha_s * x_0 + sigma_s * noise

    return walk(step, explained, schedule, times, x)
