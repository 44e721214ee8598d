"""PiGDM (Song et al., ICLR 2023): the posterior's own denoiser, walked down by any sampler.

By Tweedie's formula E[x | x_t, y] = x_hat + (sigma^2 / alpha) d log p(y | x_t) / dx_t. With x given
x_t taken as N(x_hat, C), and J = dx_hat / dx_t,

    E[x | x_t, y] = x_hat + (sigma^2 / alpha) J^T A^* (A C A^* + noise_std^2)^{-1} (y - A x_hat)

covariance "scalar": C = r^2 I with 1 / r^2 = 1 / data_std^2 + alpha^2 / sigma^2, as in the paper
    for data_std = 1 (and arXiv:2310.04432 on flows).
covariance "tweedie": C = (sigma^2 / alpha) J, the covariance itself (arXiv:2310.06721), by
    conjugate gradients with a network gradient each. For Gaussian images this is exact: as the
    steps grow, the sampler gives the posterior. On few steps it has the sampler's own bias.

Bias of "scalar": correlations between pixels given x_t are left out; for Gaussian images N(m, C_0)
mean and covariance tend to the posterior's only where C_0 = data_std^2 I, and are near it otherwise
(the mean a tenth of a standard deviation off in the tests). A y without noise is reproduced to
`LEAST_NOISE` at best.
"""

import importlib
import inspect
import pkgutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax import samplers
from vitdiff_jax.diffusion.process import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.operators import Operator, adjoint
from vitdiff_jax.operators.inverse import conjugate_gradients, nearest
from vitdiff_jax.restoration import Traits

TRAITS = Traits("linear", gradient=True, prior=True, exact=True)
LEAST_SNR = 1e-4
"""Of alpha^2 / sigma^2: in pure noise (sigma^2 / alpha) J is infinity times zero."""
LEAST_NOISE = 1e-3
"""Of noise_std, below float32's and the network's own error."""


def calls(steps: int, sampler: str = "ancestral", **_) -> int:
    """As many as the sampler's, each with a gradient, `iterations` + 1 of them with "tweedie"."""
    return _walker(sampler).calls(steps)


def restore(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array, *,
    operator: Operator, y: jax.Array, noise_std: jax.Array | float,
    covariance: str = "scalar", data_std: float = 0.5, sampler: str = "ancestral",
    iterations: int = 5,
) -> jax.Array:  # fmt: skip
    """See `restoration`.

    covariance: scalar or tweedie. data_std: of pixels, for scalar. sampler: one of `samplers`.
    iterations: of conjugate gradients, for tweedie.
    """
    if covariance not in ("scalar", "tweedie"):
        raise ValueError(f"covariance: {covariance!r} is none of scalar, tweedie")
    walker = _walker(sampler)
    noisiest = schedule.t_from_logsnr(jnp.log(jnp.asarray(LEAST_SNR, x.dtype)))
    noise_var = jnp.maximum(jnp.asarray(noise_std, x.dtype), LEAST_NOISE) ** 2

    def posterior(x_t, t):
        t = jnp.minimum(t, noisiest)
        alpha, sigma = schedule.alpha_sigma(t)
        x_hat, pull = jax.vjp(lambda x_t: denoise(x_t, t), x_t)
        scale = per_image(sigma**2 / alpha)

        def spread(v):  # (sigma^2 / alpha) J^T v
            return scale * pull(v)[0]

        if covariance == "scalar":
            var = 1 / (1 / data_std**2 + (alpha / sigma) ** 2)
            towards = nearest(operator, y, x_hat, noise_var / var) - x_hat
            return x_hat + spread(towards / per_image(var))

        def back(v):
            return adjoint(operator, v, x_t.shape[1:]).astype(x_t.dtype)

        def matrix(v):
            return operator.forward(spread(back(v))) + noise_var * v

        weights = conjugate_gradients(matrix, y - operator.forward(x_hat), iterations)
        return x_hat + spread(back(weights))

    return walker.sample(posterior, schedule, times, x, keys)


def _walker(sampler: str) -> Any:
    """The module of a sampler; ValueError if it is none, or needs a variance that there is not."""
    names = [module.name for module in pkgutil.iter_modules(samplers.__path__)]
    modules = {name: importlib.import_module(f"vitdiff_jax.samplers.{name}") for name in names}
    known = {
        name: module
        for name, module in modules.items()
        if "variance" not in inspect.signature(module.sample).parameters
    }
    if sampler not in known:
        raise ValueError(f"sampler: {sampler!r} is none of {', '.join(known)}")
    return known[sampler]
