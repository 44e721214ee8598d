"""A step back from t to s < t whose variance the network chooses (arXiv:2102.09672).

The forward step x_t = r x_s + sqrt(q) z has r = alpha_t / alpha_s, q = sigma_t^2 - r^2 sigma_s^2.
Given x, the way back is Gaussian (arXiv:2006.11239, eq. 7), with

    mean = (r sigma_s^2 x_t + alpha_s q x) / sigma_t^2
    variance = q sigma_s^2 / sigma_t^2

That is the smallest variance, of data that are one point. White data of variance 1 have

    q (alpha_s^2 + sigma_s^2) / (alpha_t^2 + sigma_t^2)

which is the beta of a variance preserving chain. The network's fraction interpolates the two
logarithms. Everything here is written with q / sigma_t^2 = 1 - (r sigma_s / sigma_t)^2, in which
float32 loses least.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr

from vitdiff_jax.diffusion.schedules import Schedule, per_image

HALF_BIN = 1 / 255
"""Half of the distance of two 8-bit values, in [-1, 1] units."""


def mean_weights(schedule: Schedule, t: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(a, b), each of t's shape: the mean of x_s given x and x_t is a x + b x_t."""
    (_, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    kept = _kept(schedule, t, s)
    return alpha_s * (1 - kept**2), kept * sigma_s / sigma_t


def log_variances(schedule: Schedule, t: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(smallest, largest) log-variance of x_s given x_t, each of t's shape.

    The smallest is -inf where sigma_s = 0.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    fresh = jnp.log1p(-(_kept(schedule, t, s) ** 2))  # of log (q / sigma_t^2)
    total = (alpha_s**2 + sigma_s**2) / (alpha_t**2 + sigma_t**2)
    return fresh + 2 * jnp.log(sigma_s), fresh + 2 * jnp.log(sigma_t) + jnp.log(total)


def _kept(schedule: Schedule, t: jax.Array, s: jax.Array) -> jax.Array:
    """r sigma_s / sigma_t < 1: the share of the noise at t that is left from s."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    return (alpha_t / alpha_s) * (sigma_s / sigma_t)


def variational_bits(
    schedule: Schedule,
    steps: int,
    x: jax.Array,
    x_hat: jax.Array,
    fraction: jax.Array,
    t: jax.Array,
) -> jax.Array:
    """The term of the variational bound, in bits per dimension [B], of t -> t - 1/steps.

    x, x_hat, fraction: [B, H, W, C], images, their estimates and where between the log-variances
        the network is; t [B] in (0, 1].
    It is the KL divergence of the true step (given x) from the network's; of the chain's first
    step, that ends in the data, it is -log of the probability of x's 8-bit values. The smallest
    variance is 0 there, and taken from the second step (as in arXiv:2102.09672's code).
    """
    s = jnp.where(t < 1.5 / steps, 0, t - 1 / steps)  # 1.5: whatever the rounding of t
    second = jnp.maximum(t, 2 / steps)
    low, _ = log_variances(schedule, second, second - 1 / steps)
    _, high = log_variances(schedule, t, s)
    low, high = per_image(low), per_image(high)
    log_variance = low + fraction * (high - low)
    weight, _ = mean_weights(schedule, t, s)
    excess = log_variance - low
    error = (per_image(weight) * (x_hat - x)) ** 2
    divergence = (excess + jnp.expm1(-excess) + error * jnp.exp(-log_variance)) / 2
    last = per_image(s) == 0
    # 1 where it is not used: or what overflows there would be a gradient of NaN.
    surprise = -log_probability(x, x_hat, jnp.where(last, jnp.exp(log_variance / 2), 1))
    nats = jnp.where(last, surprise, divergence)
    return jnp.mean(nats, (1, 2, 3)) / jnp.log(2)


def log_probability(x: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """log P of the 8-bit value of x in [-1, 1] under N(mean, std^2) that is rounded to such values.

    The lowest and the highest value have all that lies beyond them (arXiv:2006.11239, eq. 13).
    """
    distance = jnp.abs(x - mean)
    inner = log_ndtr((HALF_BIN - distance) / std)
    outer = log_ndtr(-(HALF_BIN + distance) / std)
    inside = inner + jnp.log(-jnp.expm1(outer - inner))  # of a difference, in the tails too
    outwards = jnp.where(x < 0, x - mean, mean - x)
    at_end = log_ndtr((outwards + HALF_BIN) / std)
    return jnp.where(jnp.abs(x) > 1 - HALF_BIN / 2, at_end, inside)
