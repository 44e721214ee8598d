"""Flower (arXiv:2509.26287): denoise, weigh the estimate against y, add fresh noise.

    x_0 = argmin_v |y - A v|^2 / noise_std^2 + |v - x_hat|^2 / nu^2 + gamma z'
    x_s = alpha_s x_0 + sigma_s z

Steps 1 to 3 of the paper, for any schedule: nu^2 = sigma^2 / (alpha^2 + sigma^2) is the variance of
x given x_t if that of x is 1. z' is drawn from N(0, (A^* A / noise_std^2 + 1 / nu^2)^{-1}), which
is what the argmin makes of noise of std noise_std in y and of std nu in x_hat. gamma is 0 or 1 in
the paper, which averages five images for PSNR.

Bias: all noise of x_t is replaced, so that each step is one of Langevin's equation for the
posterior, with (1 + gamma^2) / 2 of its noise. For Gaussian images, as the number of steps grows,
the samples have the posterior mean and (1 + gamma^2) / 2 of its covariance, all of it for
gamma = 1; likewise for the prior where the operator is zero. Without noise y is reproduced.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.operators import Operator
from vitdiff_jax.operators.inverse import prox_l2
from vitdiff_jax.restoration import Traits
from vitdiff_jax.samplers import fresh_noise, sampling_loop

TRAITS = Traits("linear", consistent=True, exact=True)


def nfe(steps: int, **_) -> int:
    """One per step."""
    return steps


def restore(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array, *,
    operator: Operator, y: jax.Array, noise_std: jax.Array | float,
    gamma: float = 0.0,
) -> jax.Array:  # fmt: skip
    """See `restoration`. gamma: share of the noise of x_0 given x_t and y that is sampled."""

    def nu(t):
        alpha, sigma = schedule.alpha_sigma(t)
        return sigma / jnp.hypot(alpha, sigma)

    def refined(x_hat, t, y):
        return prox_l2(operator, y, x_hat, (noise_std / nu(t)) ** 2)

    def sampled(x_hat, t, i):
        x_noise, y_noise = fresh_noise(keys, 4 * i + 2, x), fresh_noise(keys, 4 * i, y.real)
        if jnp.iscomplexobj(y):
            y_noise = y_noise + 1j * fresh_noise(keys, 4 * i + 1, y.imag)
        x_drawn = x_hat + gamma * per_image(nu(t)) * x_noise
        return refined(x_drawn, t, y + gamma * noise_std * y_noise)

    def step(x, t, s, i):
        x_hat = denoise(x, t)
        x_0 = sampled(x_hat, t, i) if gamma else refined(x_hat, t, y)
        alpha, sigma = (per_image(a) for a in schedule.alpha_sigma(s))
        return alpha * x_0 + sigma * fresh_noise(keys, 4 * i + 3, x)

    def clean(x, t):
        return refined(denoise(x, t), t, y)

    return sampling_loop(step, clean, schedule, times, x)
