"""DDNM+ (arXiv:2212.00490): replace the range-space part of each estimate by the measurement.

With `A = U diag(s) V^*`, an ancestral step x_s = a x_hat + b x_t + tau z uses in place of x_hat

    x_hat + V diag(lambda) (U^* y / s - V^* x_hat),   lambda = min(1, tau s / (a noise_std))

so that the noise from y, a lambda noise_std / s, does not exceed tau, and the step only adds the
difference. Without noise lambda is 1 and the result is consistent with y.

Bias: the measurement is not weighed against the prior until its noise exceeds tau, which with small
steps happens only at the very end. For Gaussian images, as the number of steps grows, the measured
part tends to y including its noise, and the rest depends on y less than in the posterior, as in
RePaint without resampling.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule
from vitdiff_jax.operators.svd import Decomposable
from vitdiff_jax.restoration import Traits
from vitdiff_jax.samplers import fresh_noise, sampling_loop
from vitdiff_jax.samplers.ancestral import coefficients

TRAITS = Traits("svd", prior=True, consistent=True)


def nfe(steps: int, **_) -> int:
    """One per step."""
    return steps


def restore(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array, *,
    operator: Decomposable, y: jax.Array, noise_std: jax.Array | float,
    eta: float = 1.0,
) -> jax.Array:  # fmt: skip
    """See `restoration`. eta: scales the noise of an ancestral step."""
    svd = operator.svd()
    nonzero = svd.nonzero()
    values = jnp.where(nonzero, svd.values, 1).astype(x.dtype)
    measured = svd.u_adjoint(y) / values

    def corrected(x_hat, weight):
        difference = jnp.where(nonzero, weight * (measured - svd.v_adjoint(x_hat)), 0)
        return x_hat + svd.v(difference).astype(x.dtype)

    def step(x, t, s, i):
        a, b, tau = coefficients(schedule, t, s, eta)
        noise = a * noise_std / values  # from y, for lambda = 1
        weight = jnp.where(noise > tau, tau / jnp.where(noise > 0, noise, 1), 1)  # lambda
        rest = jnp.sqrt(jnp.maximum(tau**2 - jnp.where(nonzero, weight * noise, 0) ** 2, 0))
        fresh = svd.v(rest * svd.v_adjoint(fresh_noise(keys, i, x)))
        return a * corrected(denoise(x, t), weight) + b * x + fresh.astype(x.dtype)

    def clean(x, t):  # the final denoising step adds no noise, so lambda is 0 for a noisy y
        return corrected(denoise(x, t), jnp.where(jnp.asarray(noise_std) > 0, 0.0, 1.0))

    return sampling_loop(step, clean, schedule, times, x)
