"""Reverse steps from t to s < t with a learned variance (arXiv:2102.09672).

The forward step x_t = r x_s + sqrt(q) z has r = alpha_t / alpha_s, q = sigma_t^2 - r^2 sigma_s^2.
The posterior of x_s given x is Gaussian (arXiv:2006.11239, eq. 7), with

    mean = (r sigma_s^2 x_t + alpha_s q x) / sigma_t^2
    variance = q sigma_s^2 / sigma_t^2

This is the lower bound of the reverse variance, attained for a point mass. White data of variance 1
attain the upper bound

    q (alpha_s^2 + sigma_s^2) / (alpha_t^2 + sigma_t^2)

which is the beta of a variance preserving chain. The network interpolates between the two
logarithms. All formulas use q / sigma_t^2 = 1 - (r sigma_s / sigma_t)^2, which is the most accurate
form in float32.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr

from vitdiff_jax.diffusion.schedules import Schedule, per_image

HALF_BIN = 1 / 255
"""Half of the spacing of 8-bit values, in [-1, 1] units."""


def posterior_mean_coefficients(
    schedule: Schedule, t: jax.Array, s: jax.Array
) -> tuple[jax.Array, jax.Array]:
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
    """r sigma_s / sigma_t < 1: the fraction of the noise at t that was already present at s."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    return (alpha_t / alpha_s) * (sigma_s / sigma_t)


def vlb_bpd(
    schedule: Schedule,
    steps: int,
    x: jax.Array,
    x_hat: jax.Array,
    fraction: jax.Array,
    t: jax.Array,
) -> jax.Array:
    """The term of the variational bound for t -> t - 1/steps, in bits per dimension [B].

    x, x_hat, fraction: [B, H, W, C], images, their estimates and the network's interpolation weight
        between the log-variances; t [B] in (0, 1].
    This is the KL divergence between the posterior and the network's step; for the step that ends
    at the data it is the negative log-likelihood of the 8-bit values of x. There the lower variance
    bound is 0 and replaced by that of the second step, as in the code of arXiv:2102.09672.
    """
    s = jnp.where(t < 1.5 / steps, 0, t - 1 / steps)  # 1.5: robust to the rounding of t
    second = jnp.maximum(t, 2 / steps)
    low, _ = log_variances(schedule, second, second - 1 / steps)
    _, high = log_variances(schedule, t, s)
    low, high = per_image(low), per_image(high)
    log_variance = low + fraction * (high - low)
    weight, _ = posterior_mean_coefficients(schedule, t, s)
    excess = log_variance - low
    error = (per_image(weight) * (x_hat - x)) ** 2
    divergence = (excess + jnp.expm1(-excess) + error * jnp.exp(-log_variance)) / 2
    last = per_image(s) == 0
    # 1 where it is unused, as an overflow there would make the gradient NaN.
    std = jnp.where(last, jnp.exp(log_variance / 2), 1)
    nats = jnp.where(last, -discretized_log_likelihood(x, x_hat, std), divergence)
    return jnp.mean(nats, (1, 2, 3)) / jnp.log(2)


def discretized_log_likelihood(x: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Log-likelihood of the 8-bit value of x in [-1, 1] under a discretised N(mean, std^2).

    The extreme values include the tails beyond them (arXiv:2006.11239, eq. 13).
    """
    distance = jnp.abs(x - mean)
    inner = log_ndtr((HALF_BIN - distance) / std)
    outer = log_ndtr(-(HALF_BIN + distance) / std)
    inside = inner + jnp.log(-jnp.expm1(outer - inner))  # log of a difference, stable in the tails
    outwards = jnp.where(x < 0, x - mean, mean - x)
    at_end = log_ndtr((outwards + HALF_BIN) / std)
    return jnp.where(jnp.abs(x) > 1 - HALF_BIN / 2, at_end, inside)
