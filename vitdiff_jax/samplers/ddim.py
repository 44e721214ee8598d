"""DDIM (arXiv:2010.02502), deterministic: x_s = alpha_s x_hat + sigma_s eps_hat. First order."""

import jax
import numpy as np

from vitdiff_jax.diffusion.process import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.samplers import walk


def sample(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array
) -> jax.Array:
    """See `samplers`. Exact on a point mass with any schedule and any grid."""

    def step(x, t, s, i):
        alpha_t, sigma_t = schedule.alpha_sigma(t)
        alpha_s, sigma_s = schedule.alpha_sigma(s)
        ratio = sigma_s / sigma_t
        # alpha_s x_hat + sigma_s (x - alpha_t x_hat) / sigma_t, without forming eps_hat
        return per_image(ratio) * x + per_image(alpha_s - ratio * alpha_t) * denoise(x, t)

    return walk(step, denoise, schedule, times, x)
