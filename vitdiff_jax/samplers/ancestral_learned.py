"""Ancestral sampling with a variance that the network puts out (arXiv:2102.09672), as DiT does it.

The mean is that of `ancestral`; the log-variance of a step from t to s lies between those of a
posterior and of white data, see `diffusion.reverse`. With `respaced` times on `DiscreteVP` the
bounds are the posterior variance and the beta of the respaced chain. No noise is added by the step
that ends in the data.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.reverse import log_variances, mean_weights
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.samplers import fresh_noise, walk


def calls(steps: int, **_) -> int:
    """One a step: the estimate and its variance come from the same call."""
    return steps


def sample(
    denoise: Denoise,
    schedule: Schedule,
    times: np.ndarray,
    x: jax.Array,
    keys: jax.Array,
    *,
    variance: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """See `samplers`.

    variance: (x_t [B, H, W, C], t [B]) -> the fraction [B, H, W, C] of the way from the smallest to
        the largest log-variance, `Process.variance` of the network that `denoise` is of. It is not
        guided: in DiT's samples it is that of the conditional network.
    """

    def step(x, t, s, i):
        a, b = mean_weights(schedule, t, s)
        low, high = log_variances(schedule, t, s)
        log_variance = per_image(low) + variance(x, t) * per_image(high - low)
        # Where no noise is left the smallest variance is 0, its logarithm infinite.
        tau = jnp.where(per_image(jnp.isfinite(low)), jnp.exp(log_variance / 2), 0)
        return per_image(a) * denoise(x, t) + per_image(b) * x + tau * fresh_noise(keys, i, x)

    return walk(step, denoise, schedule, times, x)
