"""Palette (arXiv:2111.05826): conditional sampling from a model trained to restore.

The model is conditioned on the degraded image, the hint, inside of `denoise`; operator, y and
noise_std are not used. Nothing enforces consistency with y.
"""

import jax
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule
from vitdiff_jax.operators import Operator
from vitdiff_jax.restoration import Traits
from vitdiff_jax.samplers import heun

TRAITS = Traits("any", prior=True, hint=True)


def nfe(steps: int, **_) -> int:
    """Two per step, one in the last."""
    return 2 * steps - 1


def restore(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array, *,
    operator: Operator, y: jax.Array, noise_std: jax.Array | float,
) -> jax.Array:  # fmt: skip
    """See `restoration`."""
    return heun.sample(denoise, schedule, times, x, keys)
