"""DPS (arXiv:2209.14687): ancestral steps, and after each one down the slope of the misfit.

    x_s <- x_s - scale d|y - A(x_hat(x_t))| / dx_t

with the derivative through the network, for any operator that has one. It is the paper's step of
zeta' / |y - A(x_hat)| down the gradient of the square, with 2 zeta' = scale, as its authors run it.

The slope of a norm is at most as long as the largest singular value, whatever the size of the
image, where the noise to be undone is sqrt(H W C) long. So a scale fits one size of images and one
number of steps; by default all steps together are 1.5 times as long as that noise. The paper's 0.3
to 1, in 1000 steps on 256 px, make 0.7 to 2.3 times.

Bias: the slope of a norm has one length, however small the misfit is. Near the end each step goes
there and back over y, whether y has noise or not: for Gaussian images and an operator whose
singular values are all s, |y - A x| is scale s^2 / 2 on average, however many the steps. So the
noise of y is reproduced, and a y without noise not quite. Where the operator is zero, it is
ancestral sampling.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion.process import Denoise
from vitdiff_jax.diffusion.schedules import Schedule
from vitdiff_jax.operators import Operator
from vitdiff_jax.restoration import Traits
from vitdiff_jax.samplers import fresh_noise, walk
from vitdiff_jax.samplers.ancestral import weights

TRAITS = Traits("any", gradient=True, prior=True)


def calls(steps: int, **_) -> int:
    """One a step, with its gradient."""
    return steps


def restore(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array, *,
    operator: Operator, y: jax.Array, noise_std: jax.Array | float,
    scale: float = 0.0,
) -> jax.Array:  # fmt: skip
    """See `restoration`; noise_std is not used. scale: of a step; 0: 1.5 sqrt(H W C) / steps."""
    scale = scale or 1.5 * math.sqrt(x[0].size) / (len(times) - 1)

    def misfit(x_t, t):
        x_hat = denoise(x_t, t)
        away = jnp.abs(y - operator.forward(x_hat)) ** 2
        square = jnp.sum(away, tuple(range(1, y.ndim)))
        # The slope of a norm at 0 is 0 / 0: nothing is to be done there.
        norm = jnp.sqrt(jnp.where(square > 0, square, 1))
        return jnp.sum(jnp.where(square > 0, norm, 0)), x_hat

    def step(x, t, s, i):
        slope, x_hat = jax.grad(misfit, has_aux=True)(x, t)
        a, b, tau = weights(schedule, t, s)
        return a * x_hat + b * x + tau * fresh_noise(keys, i, x) - scale * slope

    return walk(step, denoise, schedule, times, x)
