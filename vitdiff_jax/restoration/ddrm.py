"""DDRM (arXiv:2201.11793): denoise each singular direction with its measurement.

With `A = U diag(s) V^*`, `y' = U^* y / s` and r = alpha_s noise_std / s, in each direction
`V^* x_s` is

    not measured:   alpha_s x_hat + sigma_s (sqrt(1 - eta^2) eps_hat + eta z)
    r > sigma_s:    alpha_s x_hat + sigma_s (sqrt(1 - eta^2) alpha_s (y' - x_hat) / r + eta z)
    r <= sigma_s:   alpha_s ((1 - eta_b) x_hat + eta_b y') + sqrt(sigma_s^2 - (eta_b r)^2) z

Bias: y is reproduced including its noise, and each step replaces a fixed fraction of the noise of
x_t, however small the step. For Gaussian images, as the number of steps grows, the samples have the
posterior mean for a noiseless y and (1 + sqrt(1 - eta^2)) / 2 of its covariance, 0.76 for
eta = 0.85; likewise for the prior where the operator is zero.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.operators.svd import Decomposable
from vitdiff_jax.restoration import Traits
from vitdiff_jax.samplers import fresh_noise, sampling_loop

TRAITS = Traits("svd", consistent=True)


def nfe(steps: int, **_) -> int:
    """One per step."""
    return steps


def restore(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array, *,
    operator: Decomposable, y: jax.Array, noise_std: jax.Array | float,
    eta: float = 0.85, eta_b: float = 1.0,
) -> jax.Array:  # fmt: skip
    """See `restoration`. eta: fraction of fresh noise. eta_b: weight of the measurement."""
    svd = operator.svd()
    nonzero = svd.nonzero()
    values = jnp.where(nonzero, svd.values, 1).astype(x.dtype)
    measured = svd.u_adjoint(y) / values
    kept = np.sqrt(1 - eta**2)

    def step(x, t, s, i):
        alpha_t, sigma_t = (per_image(a) for a in schedule.alpha_sigma(t))
        alpha, sigma = (per_image(a) for a in schedule.alpha_sigma(s))
        x_hat = denoise(x, t)
        estimate, eps = svd.v_adjoint(x_hat), svd.v_adjoint((x - alpha_t * x_hat) / sigma_t)
        noise = svd.v_adjoint(fresh_noise(keys, i, x))
        r = alpha * noise_std / values
        unmeasured = alpha * estimate + sigma * (kept * eps + eta * noise)
        residual = alpha * (measured - estimate) / jnp.where(r > 0, r, 1)
        noisier = alpha * estimate + sigma * (kept * residual + eta * noise)
        rest = jnp.sqrt(jnp.maximum(sigma**2 - (eta_b * r) ** 2, 0))
        cleaner = alpha * ((1 - eta_b) * estimate + eta_b * measured) + rest * noise
        found = jnp.where(nonzero, jnp.where(r > sigma, noisier, cleaner), unmeasured)
        return svd.v(found).astype(x.dtype)

    def clean(x, t):
        x_hat = denoise(x, t)
        exact = nonzero & (jnp.asarray(noise_std) == 0)
        difference = jnp.where(exact, measured - svd.v_adjoint(x_hat), 0)
        return x_hat + eta_b * svd.v(difference).astype(x.dtype)

    return sampling_loop(step, clean, schedule, times, x)
