"""Euler-Maruyama on the reverse SDE (arXiv:2011.13456, eq. 6) of any schedule. U-ViT: 1000 steps.

The forward process dx = f x dt + g dw has f = d log(alpha)/dt and g^2 = d sigma^2/dt - 2 f sigma^2.
Its reverse, with the score (alpha x_hat - x) / sigma^2, is

    dx = (f x - g^2 score) dt + g dw,    dt < 0

Any other w in place of g^2 / 2 has the same marginals (arXiv:2401.08740, eq. 4): with the velocity
u of the probability-flow ODE, dx = (u - w score) dt + sqrt(2 w) dw. SiT samples with w = sigma.

The step is in the schedule's own t. The SDE is singular at the ends: f is -infinity at alpha = 0,
and the last Euler step would leave an error of -sigma eps at sigma = 0. Steps from or to these ends
therefore sample the exact posterior, alpha_s x_hat + sigma_s z; the last one has no noise. With
w = sigma nothing is singular: the last step is the mean of the SDE's, as SiT's.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, derivatives, per_image
from vitdiff_jax.samplers import fresh_noise, sampling_loop


def nfe(steps: int, **_) -> int:
    """One per step."""
    return steps


def sample(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array,
    *, form: str = "forward",
) -> jax.Array:  # fmt: skip
    """See `samplers`. form: of w, "forward" (the forward process's g^2 / 2) or "sigma"."""
    if form not in ("forward", "sigma"):
        raise ValueError(f"form: {form!r} is not forward or sigma")

    def sigma_step(x, t, s, i):
        alpha, sigma = schedule.alpha_sigma(t)
        _, sigma_s = schedule.alpha_sigma(s)
        d_alpha, d_sigma = derivatives(schedule, t)
        x_hat = denoise(x, t)
        eps = (x - per_image(alpha) * x_hat) / per_image(sigma)
        u = per_image(d_alpha) * x_hat + per_image(d_sigma) * eps
        on_z = jnp.where(sigma_s == 0, 0, jnp.sqrt(2 * sigma * (t - s)))
        return x + per_image(s - t) * (u + eps) + per_image(on_z) * fresh_noise(keys, i, x)

    def step(x, t, s, i):
        alpha, sigma = schedule.alpha_sigma(t)
        alpha_s, sigma_s = schedule.alpha_sigma(s)
        d_alpha, d_sigma = derivatives(schedule, t)
        singular = (alpha == 0) | (sigma_s == 0)
        f = d_alpha / jnp.where(singular, 1, alpha)
        rate = 2 * (d_sigma / sigma - f)  # g^2 / sigma^2
        on_x = jnp.where(singular, 0, 1 + (s - t) * (f + rate))
        on_x_hat = jnp.where(singular, alpha_s, (t - s) * rate * alpha)
        on_z = jnp.where(singular, sigma_s, sigma * jnp.sqrt((t - s) * rate))
        drifted = per_image(on_x) * x + per_image(on_x_hat) * denoise(x, t)
        return drifted + per_image(on_z) * fresh_noise(keys, i, x)

    return sampling_loop(sigma_step if form == "sigma" else step, denoise, schedule, times, x)
