"""Euler's method on the probability-flow ODE dx/dt = alpha' x_hat + sigma' eps_hat. First order.

The step is in the schedule's own t: in sigma for EDM, along the straight path for rectified flow
(where it equals DDIM).
"""

import jax
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, derivatives, per_image
from vitdiff_jax.samplers import sampling_loop


def velocity(denoise: Denoise, schedule: Schedule, x: jax.Array, t: jax.Array) -> jax.Array:
    """dx/dt of the probability-flow ODE at x [B, H, W, C] and times t > 0 [B]."""
    alpha, sigma = schedule.alpha_sigma(t)
    d_alpha, d_sigma = derivatives(schedule, t)
    # alpha' x_hat + sigma' (x - alpha x_hat) / sigma
    rate = d_sigma / sigma
    return per_image(rate) * x + per_image(d_alpha - rate * alpha) * denoise(x, t)


def nfe(steps: int, **_) -> int:
    """One per step."""
    return steps


def sample(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array
) -> jax.Array:
    """See `samplers`."""

    def step(x, t, s, i):
        return x + per_image(s - t) * velocity(denoise, schedule, x, t)

    return sampling_loop(step, denoise, schedule, times, x)
