"""PnP-Flow (arXiv:2410.02423): alternate data-fidelity gradient steps, fresh noise and denoising.

    z = v - t^power / |A|^2 * A^* (A v - y)
    v = mean over draws of E[x | alpha z + sigma eps, t]

An estimator rather than a sampler: the result hardly varies. Formulated for flows, but any schedule
works, since only alpha, sigma and t enter; power is the paper's exponent. For nonlinear operators
the gradient of |y - A(v)|^2 / 2 is used, with |A| = 1.

Bias: for Gaussian images, as the number of steps grows, y is reproduced including its noise (only
approximately after few steps, even if it is noiseless), and the rest tends to its conditional mean
given that y, with 1 / (2 draws) of the covariance; likewise for the prior where the operator is
zero.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise, nth_call
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.operators import Operator
from vitdiff_jax.operators.inverse import squared_norm
from vitdiff_jax.restoration import Traits
from vitdiff_jax.samplers import fresh_noise, needs_final_denoise

TRAITS = Traits("any")


def nfe(steps: int, draws: int = 5, **_) -> int:
    """`draws` per step."""
    return steps * draws


def restore(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array, *,
    operator: Operator, y: jax.Array, noise_std: jax.Array | float,
    power: float = 0.5, draws: int = 5,
) -> jax.Array:  # fmt: skip
    """See `restoration`; noise_std is not used. draws: of noise per step, averaged over."""
    norm = squared_norm(operator, x)
    norm = jnp.where(norm > 0, norm, 1)  # for a zero operator, whose gradient is zero

    def data_fidelity(v):
        return jnp.sum(jnp.abs(y - operator.forward(v)) ** 2) / 2

    def step(v, now):
        t, i = now
        t = jnp.broadcast_to(t, x.shape[:1])
        alpha, sigma = (per_image(a) for a in schedule.alpha_sigma(t))
        z = v - per_image(t**power) / norm * jax.grad(data_fidelity)(v)

        def draw(total, k):
            noise = fresh_noise(keys, draws * i + k, x)
            return total + nth_call(denoise, k)(alpha * z + sigma * noise, t) / draws, None

        return jax.lax.scan(draw, jnp.zeros_like(x), jnp.arange(draws))[0], None

    grid = jnp.asarray(times if needs_final_denoise(schedule, times) else times[:-1], x.dtype)
    return jax.lax.scan(step, jnp.zeros_like(x), (grid, jnp.arange(len(grid))))[0]
