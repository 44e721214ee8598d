"""DPM-Solver++(3M) (arXiv:2211.01095): third order with one network call a step.

x_hat is drawn out along a parabola in l = log(alpha / sigma) through its last three values, and

    x_s = (sigma_s / sigma_t) x_t + sigma_s int exp(l) x_hat(l) dl

taken exactly. With Newton's divided differences f, h = l_s - l_t and h' the step before, that is

    x_s = (sigma_s / sigma_t) x_t + alpha_s (p_0 x_hat + p_1 h (f_2 + h' f_3) + p_2 h^2 f_3)

with p_k = int_0^h (u / h)^k exp(u - h) du. The first two steps have too little past
and are of first and second order; the last, to sigma = 0, is of first, as in 2M. Codes in use halve
the last term, which leaves second order.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.samplers import walk_with_past
from vitdiff_jax.samplers.ancestral import weights
from vitdiff_jax.samplers.dpmpp_2m import no_past, relative, step_length


def calls(steps: int, **_) -> int:
    """One a step."""
    return steps


def powers(h: jax.Array) -> tuple[jax.Array, jax.Array]:
    """int_0^h (u / h)^k exp(u - h) du for k = 1, 2; 0 where h is."""
    safe = jnp.where(h > 0, h, 1)
    first = 1 + jnp.expm1(-safe) / safe
    return jnp.where(h > 0, first, 0), jnp.where(h > 0, 1 - 2 * first / safe, 0)


def sample(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array
) -> jax.Array:
    """See `samplers`."""

    def step(x, t, s, i, past):
        older, slope_before, before, long_before = past
        a, b, _ = weights(schedule, t, s, eta=0.0)
        alpha_s = per_image(schedule.alpha_sigma(s)[0])
        h = step_length(schedule, t, s)
        first, second = powers(h)
        x_hat = denoise(x, t)
        slope = relative(1.0, before) * (x_hat - older)
        turn = slope - slope_before
        here = slope + relative(before, before + long_before) * turn  # the slope at t itself
        bend = relative(1.0, before + long_before) * turn
        curve = first * h * here + second * h**2 * bend
        return a * x_hat + b * x + alpha_s * curve, (x_hat, slope, h, before)

    older, before = no_past(x)
    return walk_with_past(step, (older, older, before, before), denoise, schedule, times, x)
