"""DPM-Solver++(3M) (arXiv:2211.01095): third order with one network call per step.

x_hat is extrapolated by a parabola in l = log(alpha / sigma) through its last three values, and

    x_s = (sigma_s / sigma_t) x_t + sigma_s int exp(l) x_hat(l) dl

is integrated exactly. With divided differences f, h = l_s - l_t and h' the previous step, this is

    x_s = (sigma_s / sigma_t) x_t + alpha_s (p_0 x_hat + p_1 h (f_2 + h' f_3) + p_2 h^2 f_3)

with p_k = int_0^h (u / h)^k exp(u - h) du. The first two steps lack history and are of first and
second order; the last, to sigma = 0, is of first order, as in 2M. Widely used implementations halve
the last term, which reduces them to second order.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.samplers import multistep_loop
from vitdiff_jax.samplers.ancestral import coefficients
from vitdiff_jax.samplers.dpmpp_2m import empty_history, step_length, step_ratio


def nfe(steps: int, **_) -> int:
    """One per step."""
    return steps


def phi_functions(h: jax.Array) -> tuple[jax.Array, jax.Array]:
    """int_0^h (u / h)^k exp(u - h) du for k = 1, 2; 0 for h = 0."""
    safe = jnp.where(h > 0, h, 1)
    first = 1 + jnp.expm1(-safe) / safe
    return jnp.where(h > 0, first, 0), jnp.where(h > 0, 1 - 2 * first / safe, 0)


def sample(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array
) -> jax.Array:
    """See `samplers`."""

    def step(x, t, s, i, history):
        x_hat_prev, f2_prev, h_prev, h_prev2 = history
        a, b, _ = coefficients(schedule, t, s, eta=0.0)
        alpha_s = per_image(schedule.alpha_sigma(s)[0])
        h = step_length(schedule, t, s)
        p1, p2 = phi_functions(h)
        x_hat = denoise(x, t)
        f2 = step_ratio(1.0, h_prev) * (x_hat - x_hat_prev)
        f3 = step_ratio(1.0, h_prev + h_prev2) * (f2 - f2_prev)
        slope = f2 + step_ratio(h_prev, h_prev + h_prev2) * (f2 - f2_prev)  # f2 + h' f3
        correction = p1 * h * slope + p2 * h**2 * f3
        return a * x_hat + b * x + alpha_s * correction, (x_hat, f2, h, h_prev)

    x_hat, h = empty_history(x)
    return multistep_loop(step, (x_hat, x_hat, h, h), denoise, schedule, times, x)
