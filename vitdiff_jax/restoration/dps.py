"""DPS (arXiv:2209.14687): ancestral steps, each followed by a gradient step on the residual.

    x_s <- x_s - scale d|y - A(x_hat(x_t))| / dx_t

with the gradient through the network, for any differentiable operator. This is the paper's step of
size zeta' / |y - A(x_hat)| along the gradient of the squared residual, with 2 zeta' = scale, as in
the authors' code.

The gradient of a norm is bounded by the largest singular value, independent of the image size,
whereas the norm of the noise to remove is sqrt(H W C). So a scale suits one image size and one
number of steps; by default the steps sum to 1.5 times that norm. The paper's 0.3 to 1, for 1000
steps on 256 px, sum to 0.7 to 2.3 times.

Bias: the gradient of a norm does not vanish with the residual. Near the end the steps oscillate
about y, whether it is noisy or not: for Gaussian images and an operator whose singular values are
all s, |y - A x| is scale s^2 / 2 on average, for any number of steps. So the noise of y is
reproduced, and a noiseless y only approximately. Where the operator is zero, this is ancestral
sampling.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule
from vitdiff_jax.operators import Operator
from vitdiff_jax.restoration import Traits
from vitdiff_jax.samplers import fresh_noise, sampling_loop
from vitdiff_jax.samplers.ancestral import coefficients

TRAITS = Traits("any", gradient=True, prior=True)


def nfe(steps: int, **_) -> int:
    """One per step, with its gradient."""
    return steps


def restore(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array, *,
    operator: Operator, y: jax.Array, noise_std: jax.Array | float,
    scale: float = 0.0,
) -> jax.Array:  # fmt: skip
    """See `restoration`; noise_std is not used. scale: step size; 0: 1.5 sqrt(H W C) / steps."""
    scale = scale or 1.5 * math.sqrt(x[0].size) / (len(times) - 1)

    def residual_norm(x_t, t):
        x_hat = denoise(x_t, t)
        squares = jnp.abs(y - operator.forward(x_hat)) ** 2
        square = jnp.sum(squares, tuple(range(1, y.ndim)))
        # The gradient of a norm at 0 is 0 / 0; here it is 0.
        norm = jnp.sqrt(jnp.where(square > 0, square, 1))
        return jnp.sum(jnp.where(square > 0, norm, 0)), x_hat

    def step(x, t, s, i):
        gradient, x_hat = jax.grad(residual_norm, has_aux=True)(x, t)
        a, b, tau = coefficients(schedule, t, s)
        return a * x_hat + b * x + tau * fresh_noise(keys, i, x) - scale * gradient

    return sampling_loop(step, denoise, schedule, times, x)
