"""PiGDM (Song et al., ICLR 2023): a denoiser for the posterior, used by any sampler.

By Tweedie's formula E[x | x_t, y] = x_hat + (sigma^2 / alpha) d log p(y | x_t) / dx_t. With
p(x | x_t) approximated by N(x_hat, C), and J = dx_hat / dx_t,

    E[x | x_t, y] = x_hat + (sigma^2 / alpha) J^T A^* (A C A^* + noise_std^2)^{-1} (y - A x_hat)

covariance "scalar": C = r^2 I with 1 / r^2 = 1 / data_std^2 + alpha^2 / sigma^2, as in the paper
    for data_std = 1 (and arXiv:2310.04432 on flows).
covariance "tweedie": C = (sigma^2 / alpha) J, the exact covariance (arXiv:2310.06721), by conjugate
    gradients with one network gradient per iteration. Exact for Gaussian images: as the number of
    steps grows, the sampler samples the posterior. With few steps it has the bias of the sampler.

Bias of "scalar": correlations between pixels given x_t are neglected; for Gaussian images N(m, C_0)
mean and covariance tend to those of the posterior only if C_0 = data_std^2 I, and are close
otherwise (in the tests the mean is off by a tenth of a standard deviation). A noiseless y is
reproduced to `MIN_NOISE_STD` at best.
"""

import importlib
import inspect
import pkgutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax import samplers
from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.operators import Operator, adjoint
from vitdiff_jax.operators.inverse import conjugate_gradients, prox_l2
from vitdiff_jax.restoration import Traits

TRAITS = Traits("linear", gradient=True, prior=True, exact=True)
MIN_SNR = 1e-4
"""Lower bound on alpha^2 / sigma^2: in pure noise (sigma^2 / alpha) J is infinity times zero."""
MIN_NOISE_STD = 1e-3
"""Lower bound on noise_std, below the error of float32 and of the network."""


def nfe(steps: int, sampler: str = "ancestral", **_) -> int:
    """That of the sampler, each with a gradient, or `iterations` + 1 gradients for "tweedie"."""
    return _sampler(sampler).nfe(steps)


def gradients(covariance: str = "scalar", iterations: int = 5, **_) -> int:
    """One per network call, or one per iteration and one more."""
    return iterations + 1 if covariance == "tweedie" else 1


def restore(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array, *,
    operator: Operator, y: jax.Array, noise_std: jax.Array | float,
    covariance: str = "scalar", data_std: float = 0.5, sampler: str = "ancestral",
    iterations: int = 5,
) -> jax.Array:  # fmt: skip
    """See `restoration`.

    covariance: scalar or tweedie. data_std: of the pixels, for scalar. sampler: one of `samplers`.
    iterations: of conjugate gradients, for tweedie.
    """
    if covariance not in ("scalar", "tweedie"):
        raise ValueError(f"covariance: {covariance!r} is not one of scalar, tweedie")
    module = _sampler(sampler)
    noisiest = schedule.t_from_logsnr(jnp.log(jnp.asarray(MIN_SNR, x.dtype)))
    noise_var = jnp.maximum(jnp.asarray(noise_std, x.dtype), MIN_NOISE_STD) ** 2

    def posterior(x_t, t):
        t = jnp.minimum(t, noisiest)
        alpha, sigma = schedule.alpha_sigma(t)
        x_hat, vjp = jax.vjp(lambda x_t: denoise(x_t, t), x_t)
        scale = per_image(sigma**2 / alpha)

        def scaled_vjp(v):  # (sigma^2 / alpha) J^T v
            return scale * vjp(v)[0]

        if covariance == "scalar":
            var = 1 / (1 / data_std**2 + (alpha / sigma) ** 2)
            difference = prox_l2(operator, y, x_hat, noise_var / var) - x_hat
            return x_hat + scaled_vjp(difference / per_image(var))

        def a_adjoint(v):
            return adjoint(operator, v, x_t.shape[1:]).astype(x_t.dtype)

        def matrix(v):
            return operator.forward(scaled_vjp(a_adjoint(v))) + noise_var * v

        solution = conjugate_gradients(matrix, y - operator.forward(x_hat), iterations)
        return x_hat + scaled_vjp(a_adjoint(solution))

    return module.sample(posterior, schedule, times, x, keys)


def _sampler(sampler: str) -> Any:
    """The module of a sampler. Raises ValueError if it is unknown or needs a learned variance."""
    names = [module.name for module in pkgutil.iter_modules(samplers.__path__)]
    modules = {name: importlib.import_module(f"vitdiff_jax.samplers.{name}") for name in names}
    known = {
        name: module
        for name, module in modules.items()
        if "variance" not in inspect.signature(module.sample).parameters
    }
    if sampler not in known:
        raise ValueError(f"sampler: {sampler!r} is not one of {', '.join(known)}")
    return known[sampler]
