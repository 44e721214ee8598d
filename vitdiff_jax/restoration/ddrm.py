"""DDRM (arXiv:2201.11793): each singular direction is denoised with what y says of it.

With `A = U diag(s) V^*`, `y' = U^* y / s` and r = alpha_s noise_std / s, in each direction
`V^* x_s` is

    not measured:   alpha_s x_hat + sigma_s (sqrt(1 - eta^2) eps_hat + eta z)
    r > sigma_s:    alpha_s x_hat + sigma_s (sqrt(1 - eta^2) alpha_s (y' - x_hat) / r + eta z)
    r <= sigma_s:   alpha_s ((1 - eta_b) x_hat + eta_b y') + sqrt(sigma_s^2 - (eta_b r)^2) z

Bias: y is reproduced with its noise, and each step replaces a fixed share of x_t's noise, however
small the step. For Gaussian images, as the steps grow, what comes out has the mean of the posterior
for a y without noise, and (1 + sqrt(1 - eta^2)) / 2 of its covariance, 0.76 for 0.85; so has all of
the image where the operator is zero.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion.process import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.operators.svd import Decomposable
from vitdiff_jax.restoration import Traits
from vitdiff_jax.samplers import fresh_noise, walk

TRAITS = Traits("svd", consistent=True)


def calls(steps: int, **_) -> int:
    """One a step."""
    return steps


def restore(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array, *,
    operator: Decomposable, y: jax.Array, noise_std: jax.Array | float,
    eta: float = 0.85, eta_b: float = 1.0,
) -> jax.Array:  # fmt: skip
    """See `restoration`. eta: share of fresh noise. eta_b: trust in what is measured well."""
    svd = operator.svd()
    seen = svd.seen()
    values = jnp.where(seen, svd.values, 1).astype(x.dtype)
    measured = svd.measured(y) / values
    kept = np.sqrt(1 - eta**2)

    def step(x, t, s, i):
        alpha_t, sigma_t = (per_image(a) for a in schedule.alpha_sigma(t))
        alpha, sigma = (per_image(a) for a in schedule.alpha_sigma(s))
        x_hat = denoise(x, t)
        estimate, eps = svd.analyse(x_hat), svd.analyse((x - alpha_t * x_hat) / sigma_t)
        noise = svd.analyse(fresh_noise(keys, i, x))
        r = alpha * noise_std / values
        unseen = alpha * estimate + sigma * (kept * eps + eta * noise)
        away = alpha * (measured - estimate) / jnp.where(r > 0, r, 1)
        badly = alpha * estimate + sigma * (kept * away + eta * noise)
        rest = jnp.sqrt(jnp.maximum(sigma**2 - (eta_b * r) ** 2, 0))
        well = alpha * ((1 - eta_b) * estimate + eta_b * measured) + rest * noise
        found = jnp.where(seen, jnp.where(r > sigma, badly, well), unseen)
        return svd.synthesise(found).astype(x.dtype)

    def clean(x, t):
        x_hat = denoise(x, t)
        exact = seen & (jnp.asarray(noise_std) == 0)
        difference = jnp.where(exact, measured - svd.analyse(x_hat), 0)
        return x_hat + eta_b * svd.synthesise(difference).astype(x.dtype)

    return walk(step, clean, schedule, times, x)
