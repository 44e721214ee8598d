"""UniPC of order 2 (arXiv:2302.04867): third order with one network call per step.

The predictor is a DPM-Solver++(2M) step. The corrector needs no extra call: once the network has
been evaluated at the predicted x_s, as the next step requires anyway, the step is repeated with
x_hat interpolated by the parabola in l = log(alpha / sigma) through this and the last two values,

    x_s = (sigma_s / sigma_t) x_t + sigma_s int exp(l) x_hat(l) dl

and the next step starts from the corrected x_s. The paper's B_1 and B_2 agree where the history is
complete, as B cancels. In the first step, which has no history, it is B_2: the corrector uses the
mean of the two values. The last step, to sigma = 0, is first order and not corrected.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.samplers import multistep_loop
from vitdiff_jax.samplers.ancestral import coefficients
from vitdiff_jax.samplers.dpmpp_2m import empty_history, step_length, step_ratio
from vitdiff_jax.samplers.dpmpp_3m import phi_functions


def nfe(steps: int, **_) -> int:
    """One per step."""
    return steps


def sample(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array
) -> jax.Array:
    """See `samplers`."""

    def step(x, t, s, i, history):
        partial, weight, x_hat_prev, h_prev = history
        x_hat = denoise(x, t)
        x = partial + weight * x_hat  # the corrected x_t
        a, b, _ = coefficients(schedule, t, s, eta=0.0)
        alpha_s = per_image(schedule.alpha_sigma(s)[0])
        h = step_length(schedule, t, s)
        q = step_ratio(h, h_prev)
        change = q * (x_hat - x_hat_prev)
        first_order = a * x_hat + b * x
        # The parabola's weights, of x_hat_s - x_hat and of `change`.
        p1, p2 = phi_functions(h)
        new = jnp.where(q > 0, alpha_s * (p2 * q + p1) / (q + 1), a / 2)
        old = alpha_s * (p1 - p2) * q / (q + 1)
        history = first_order + old * change - new * x_hat, new, x_hat, h
        return first_order + a / 2 * change, history

    x_hat, h = empty_history(x)
    history = x, jnp.zeros_like(h), x_hat, h
    return multistep_loop(step, history, denoise, schedule, times, x)
