"""DDNM+ (arXiv:2212.00490): of each estimate, replace what was measured by the measurement.

With `A = U diag(s) V^*`, an ancestral step x_s = a x_hat + b x_t + tau z takes in place of x_hat

    x_hat + V diag(lambda) (U^* y / s - V^* x_hat),   lambda = min(1, tau s / (a noise_std))

so that the noise of y, a lambda noise_std / s, is no more than the tau that the step adds anyway,
and adds only what is missing to tau. Without noise lambda is 1 and the result explains y exactly.

Bias: what is measured is not weighed against what the network expects of it until the noise of y
exceeds tau, and in small steps that is only at the very end. For Gaussian images, as the steps
grow, the measured part tends to y with its noise, and the rest is less tied to y than in the
posterior, as in RePaint without resampling.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion.process import Denoise
from vitdiff_jax.diffusion.schedules import Schedule
from vitdiff_jax.operators.svd import Decomposable
from vitdiff_jax.restoration import Traits
from vitdiff_jax.samplers import fresh_noise, walk
from vitdiff_jax.samplers.ancestral import weights

TRAITS = Traits("svd", prior=True, consistent=True)


def calls(steps: int, **_) -> int:
    """One a step."""
    return steps


def restore(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array, *,
    operator: Decomposable, y: jax.Array, noise_std: jax.Array | float,
    eta: float = 1.0,
) -> jax.Array:  # fmt: skip
    """See `restoration`. eta: fresh noise as a share of an ancestral step's."""
    svd = operator.svd()
    seen = svd.seen()
    values = jnp.where(seen, svd.values, 1).astype(x.dtype)
    measured = svd.measured(y) / values

    def corrected(x_hat, share):
        difference = jnp.where(seen, share * (measured - svd.analyse(x_hat)), 0)
        return x_hat + svd.synthesise(difference).astype(x.dtype)

    def step(x, t, s, i):
        a, b, tau = weights(schedule, t, s, eta)
        noise = a * noise_std / values  # of y, as it enters x_s with lambda = 1
        share = jnp.where(noise > tau, tau / jnp.where(noise > 0, noise, 1), 1)
        rest = jnp.sqrt(jnp.maximum(tau**2 - jnp.where(seen, share * noise, 0) ** 2, 0))
        fresh = svd.synthesise(rest * svd.analyse(fresh_noise(keys, i, x)))
        return a * corrected(denoise(x, t), share) + b * x + fresh.astype(x.dtype)

    def clean(x, t):  # an exact last step adds no noise, which may hide that of y
        return corrected(denoise(x, t), jnp.where(jnp.asarray(noise_std) > 0, 0.0, 1.0))

    return walk(step, clean, schedule, times, x)
