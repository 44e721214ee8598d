"""DDIM (arXiv:2010.02502): x_s = alpha_s x_hat + sigma_s eps_hat, with eta > 0 partly fresh noise.

First order. eta is the share of the fresh noise of an ancestral step: 0 is deterministic, 1 is
`ancestral`.
"""

import jax
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule
from vitdiff_jax.samplers import fresh_noise, walk
from vitdiff_jax.samplers.ancestral import weights


def calls(steps: int, **_) -> int:
    """One a step."""
    return steps


def sample(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array, *,
    eta: float = 0.0,
) -> jax.Array:  # fmt: skip
    """See `samplers`. Exact on a point mass with any schedule and any grid. eta: in [0, 1]."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: {eta} is not in [0, 1]; 0 adds no noise, 1 an ancestral step's")

    def step(x, t, s, i):
        a, b, tau = weights(schedule, t, s, eta)
        x = a * denoise(x, t) + b * x
        return x + tau * fresh_noise(keys, i, x) if eta else x

    return walk(step, denoise, schedule, times, x)
