"""Laws of training times: maps of quantiles u [B] in (0, 1) to times t [B].

    distribution(u, schedule, **options) -> t

Each is the inverse of its distribution function, so that stratifying the quantiles serves them all.
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
    """logit(t) ~ N(mean, std^2) (arXiv:2403.03206). JiT: mean 0.8, std 0.8 in our direction."""
    return jax.nn.sigmoid(mean + std * ndtri(u))


def edm_lognormal(
    u: jax.Array, schedule: Schedule, *, mean: float = -1.2, std: float = 1.2
) -> jax.Array:
    """log(sigma / alpha) ~ N(mean, std^2) (arXiv:2206.00364), clipped to the schedule's range."""
    t = schedule.t_from_logsnr(-2 * (mean + std * ndtri(u)))
    return jnp.clip(t, 0, 1)


def discrete(u: jax.Array, schedule: Schedule, *, steps: int = 1000) -> jax.Array:
    """t is one of 1/steps, 2/steps, ..., 1, each as likely: a chain's times (arXiv:2006.11239)."""
    return (jnp.floor(u * steps) + 1) / steps
