"""UniPC of order 2 (arXiv:2302.04867): third order with one network call a step.

A predictor, DPM-Solver++(2M)'s step, and a corrector that costs nothing: once the network has
looked at the predicted x_s, as the next step must anyway, the step is taken again with x_hat along
the parabola in l = log(alpha / sigma) through that value and the two before it,

    x_s = (sigma_s / sigma_t) x_t + sigma_s int exp(l) x_hat(l) dl

and the next step starts from there. The choice between the paper's B_1 and B_2 is of no consequence
to this corrector, where B cancels. It is B_2's elsewhere: the first step has no past, its corrector
is the mean of the two values; the last, to sigma = 0, is of first order and uncorrected.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.samplers import walk_with_past
from vitdiff_jax.samplers.ancestral import weights
from vitdiff_jax.samplers.dpmpp_2m import no_past, relative, step_length
from vitdiff_jax.samplers.dpmpp_3m import powers


def calls(steps: int, **_) -> int:
    """One a step."""
    return steps


def sample(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array
) -> jax.Array:
    """See `samplers`."""

    def step(x, t, s, i, past):
        uncorrected, weight, older, before = past
        x_hat = denoise(x, t)
        x = uncorrected + weight * x_hat
        a, b, _ = weights(schedule, t, s, eta=0.0)
        alpha_s = per_image(schedule.alpha_sigma(s)[0])
        h = step_length(schedule, t, s)
        q = relative(h, before)
        change = q * (x_hat - older)
        straight = a * x_hat + b * x
        # The parabola's weights, of x_hat_s - x_hat and of `change`.
        first, second = powers(h)
        new = jnp.where(q > 0, alpha_s * (second * q + first) / (q + 1), a / 2)
        old = alpha_s * (first - second) * q / (q + 1)
        past = straight + old * change - new * x_hat, new, x_hat, h
        return straight + a / 2 * change, past

    older, before = no_past(x)
    past = x, jnp.zeros_like(before), older, before
    return walk_with_past(step, past, denoise, schedule, times, x)
