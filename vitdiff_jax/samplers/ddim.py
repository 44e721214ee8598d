"""DDIM (arXiv:2010.02502): x_s = alpha_s x_hat + sigma_s eps_hat, partly fresh noise if eta > 0.

First order. eta scales the noise of an ancestral step: 0 is deterministic, 1 is `ancestral`.
"""

import jax
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule
from vitdiff_jax.samplers import fresh_noise, sampling_loop
from vitdiff_jax.samplers.ancestral import coefficients


def nfe(steps: int, **_) -> int:
    """One per step."""
    return steps


def sample(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array, *,
    eta: float = 0.0,
) -> jax.Array:  # fmt: skip
    """See `samplers`. Exact for a point mass on any schedule and grid. eta: in [0, 1]."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: {eta} is not in [0, 1]; 0 is deterministic, 1 is ancestral")

    def step(x, t, s, i):
        a, b, tau = coefficients(schedule, t, s, eta)
        x = a * denoise(x, t) + b * x
        return x + tau * fresh_noise(keys, i, x) if eta else x

    return sampling_loop(step, denoise, schedule, times, x)
