"""Ancestral sampling with a learned variance (arXiv:2102.09672), as in DiT.

The mean is that of `ancestral`; the network interpolates the log-variance of a step between bounds,
see `diffusion.reverse`. With `respaced` times on `DiscreteVP` these are the posterior variance and
the beta of the respaced chain. The step to the data adds no noise.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.reverse import log_variances, posterior_mean_coefficients
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.samplers import fresh_noise, sampling_loop


def nfe(steps: int, **_) -> int:
    """One per step, for both the estimate and its variance."""
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

    variance: (x_t [B, H, W, C], t [B]) -> interpolation weight [B, H, W, C] between the smallest
        and the largest log-variance: `Process.variance` of the network of `denoise`. It is not
        guided: DiT uses that of the conditional network.
    """

    def step(x, t, s, i):
        a, b = posterior_mean_coefficients(schedule, t, s)
        low, high = log_variances(schedule, t, s)
        log_variance = per_image(low) + variance(x, t) * per_image(high - low)
        # At sigma_s = 0 the smallest variance is 0 and its logarithm infinite.
        tau = jnp.where(per_image(jnp.isfinite(low)), jnp.exp(log_variance / 2), 0)
        return per_image(a) * denoise(x, t) + per_image(b) * x + tau * fresh_noise(keys, i, x)

    return sampling_loop(step, denoise, schedule, times, x)
