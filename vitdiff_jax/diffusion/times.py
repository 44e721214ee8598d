"""Timestep distributions for training: maps from quantiles u [B] in (0, 1) to times t [B].

    distribution(u, schedule, **options) -> t

Each is an inverse CDF, so that stratified quantiles give stratified times.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from vitdiff_jax.diffusion.schedules import Schedule


def uniform(u: jax.Array, schedule: Schedule) -> jax.Array:
    """t ~ U(0, 1)."""
    return u


def logit_normal(
    u: jax.Array, schedule: Schedule, *, mean: float = 0.0, std: float = 1.0
) -> jax.Array:
    """logit(t) ~ N(mean, std^2) (arXiv:2403.03206). JiT: mean 0.8, std 0.8 where t = 1 is noise."""
    return jax.nn.sigmoid(mean + std * ndtri(u))


def edm_lognormal(
    u: jax.Array, schedule: Schedule, *, mean: float = -1.2, std: float = 1.2
) -> jax.Array:
    """log(sigma / alpha) ~ N(mean, std^2) (arXiv:2206.00364), clipped to the schedule's range."""
    t = schedule.t_from_logsnr(-2 * (mean + std * ndtri(u)))
    return jnp.clip(t, 0, 1)


def discrete(u: jax.Array, schedule: Schedule, *, steps: int = 1000) -> jax.Array:
    """Uniform over 1/steps, 2/steps, ..., 1: the timesteps of a chain (arXiv:2006.11239)."""
    return (jnp.floor(u * steps) + 1) / steps
