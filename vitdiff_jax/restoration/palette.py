"""Palette (arXiv:2111.05826): a model that was trained to restore just samples.

It sees the degraded image as a condition, the hint, so that all is in `denoise`; operator, y and
noise_std are not looked at. It is as good as its training, and nothing binds it to y.
"""

import jax
import numpy as np

from vitdiff_jax.diffusion.process import Denoise
from vitdiff_jax.diffusion.schedules import Schedule
from vitdiff_jax.operators import Operator
from vitdiff_jax.restoration import Traits
from vitdiff_jax.samplers import heun

TRAITS = Traits("any", prior=True, hint=True)


def calls(steps: int, **_) -> int:
    """Two a step but in the last."""
    return 2 * steps - 1


def restore(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array, *,
    operator: Operator, y: jax.Array, noise_std: jax.Array | float,
) -> jax.Array:  # fmt: skip
    """See `restoration`."""
    return heun.sample(denoise, schedule, times, x, keys)
