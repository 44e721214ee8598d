"""Heun's method on the probability-flow ODE (arXiv:2206.00364, algorithm 1). Second order.

Two network calls per step; a step to sigma = 0, where the velocity is 0/0, is an Euler step, as in
EDM and JiT.
"""

import jax
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.samplers import sampling_loop
from vitdiff_jax.samplers.euler import velocity


def nfe(steps: int, **_) -> int:
    """Two per step, one in the last, which ends at the data on every schedule."""
    return 2 * steps - 1


def sample(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array
) -> jax.Array:
    """See `samplers`."""

    def step(x, t, s, i):
        slope = velocity(denoise, schedule, x, t)
        end = x + per_image(s - t) * slope
        _, sigma_s = schedule.alpha_sigma(s)

        def correct():
            average = (slope + velocity(denoise, schedule, end, s)) / 2
            return x + per_image(s - t) * average

        return jax.lax.cond(sigma_s[0] > 0, correct, lambda: end)

    return sampling_loop(step, denoise, schedule, times, x)
