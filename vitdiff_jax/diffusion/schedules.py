"""Noise schedules: x_t = alpha(t) x + sigma(t) eps, where t = 0 is data and t = 1 is noise.

A schedule is part of a model. It is a frozen dataclass with

    alpha_sigma(t)      -> (alpha, sigma), each of t's shape
    t_from_logsnr(l)    -> t, the inverse of l(t) = log(alpha^2 / sigma^2)
    network_input(t)    -> (scale, time): the network's inputs are scale * x_t and `time`

All take and return float arrays of one shape, t in [0, 1]. alpha and sigma are exact at the ends
(rectified flow has alpha = 0 at t = 1); log-SNRs are clipped to +-20. Do not differentiate a
schedule at t = 0, where sigma of LinearVP and DiscreteVP has an infinite derivative.
"""

import dataclasses
import functools
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

LOGSNR_MAX = 20.0


class Schedule(Protocol):
    """The interface of a schedule for samplers, restorers and losses."""

    def alpha_sigma(self, t: jax.Array) -> tuple[jax.Array, jax.Array]: ...
    def t_from_logsnr(self, logsnr: jax.Array) -> jax.Array: ...
    def network_input(self, t: jax.Array) -> tuple[jax.Array, jax.Array]: ...


def logsnr(schedule: Schedule, t: jax.Array) -> jax.Array:
    """log(alpha^2 / sigma^2) at times t, clipped to +-20."""
    alpha, sigma = schedule.alpha_sigma(t)
    tiny = jnp.exp(-LOGSNR_MAX)
    ratio = jnp.log(jnp.maximum(alpha, tiny)) - jnp.log(jnp.maximum(sigma, tiny))
    return jnp.clip(2 * ratio, -LOGSNR_MAX, LOGSNR_MAX)


def ends(schedule: Schedule) -> tuple[float, float]:
    """(alpha(1), sigma(0)): zero where the schedule reaches pure noise and clean data."""
    with jax.ensure_compile_time_eval():  # concrete numbers, even inside a trace
        alpha, _ = schedule.alpha_sigma(jnp.ones(()))
        _, sigma = schedule.alpha_sigma(jnp.zeros(()))
        return float(alpha), float(sigma)


def derivatives(schedule: Schedule, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(d alpha / dt, d sigma / dt) at times t > 0."""
    return jax.jvp(schedule.alpha_sigma, (t,), (jnp.ones_like(t),))[1]


def per_image(a: jax.Array) -> jax.Array:
    """Reshape one value per image [B] to broadcast with images [B, H, W, C]."""
    return a[:, None, None, None]


@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
    """alpha = 1 - t, sigma = noise_scale * t (arXiv:2209.03003; JiT uses 2 at 512 px).

    The network's time feature is 1 - t, as in JiT and SiT, where 1 is data.
    """

    noise_scale: float = 1.0

    def alpha_sigma(self, t):
        return 1 - t, self.noise_scale * t

    def t_from_logsnr(self, logsnr):
        return 1 / (1 + self.noise_scale * jnp.exp(logsnr / 2))

    def network_input(self, t):
        return jnp.ones_like(t), 1 - t


@dataclasses.dataclass(frozen=True)
class Cosine:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2) (arXiv:2102.09672 without its offset)."""

    def alpha_sigma(self, t):
        # cos(pi t / 2) as a sine is exactly 0 at t = 1; the cosine gives 6e-17 in float64.
        return jnp.sin(jnp.pi / 2 * (1 - t)), jnp.sin(jnp.pi / 2 * t)

    def t_from_logsnr(self, logsnr):
        return 2 / jnp.pi * jnp.arctan(jnp.exp(-logsnr / 2))

    def network_input(self, t):
        return jnp.ones_like(t), 1000 * t


@dataclasses.dataclass(frozen=True)
class GVP(Cosine):
    """The generalised variance preserving path of SiT (arXiv:2401.08740, section 2.2).

    `Cosine` with another time feature: SiT's networks see 1 - t, where 1 is data.
    """

    def network_input(self, t):
        return jnp.ones_like(t), 1 - t


@dataclasses.dataclass(frozen=True)
class LinearVP:
    """Variance preserving with linear beta(t) (arXiv:2011.13456, eq. 33).

    log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2.
    time_scale: the network's time feature is time_scale * t; U-ViT uses 999 (arXiv:2209.12152).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    time_scale: float = 1000.0

    def alpha_sigma(self, t):
        log_alpha = -(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2
        return jnp.exp(log_alpha), jnp.sqrt(-jnp.expm1(2 * log_alpha))

    def t_from_logsnr(self, logsnr):
        # log alpha = -softplus(-logsnr) / 2; the positive root of the quadratic in t, in the form
        # without cancellation at small t.
        c = 2 * jax.nn.softplus(-logsnr)
        slope = self.beta_max - self.beta_min
        return c / (self.beta_min + jnp.sqrt(self.beta_min**2 + slope * c))

    def network_input(self, t):
        return jnp.ones_like(t), self.time_scale * t


@dataclasses.dataclass(frozen=True)
class DiscreteVP:
    """The chain of DDPM (arXiv:2006.11239), ADM and DiT: `steps` linearly spaced betas.

    power: the betas' roots of this degree are linearly spaced; 2 for Stable Diffusion's betas.
    first: the number by which the network knows timestep 0; 1 for U-ViT-H.

    Timestep i = 0, 1, ... is t = (i + 1) / steps, where alpha^2 = prod_{j <= i} (1 - beta_j); in
    between it is interpolated by a polynomial, and alpha is 1 at t = 0. The network's time feature
    is the timestep, steps * t - 1 + first.
    """

    steps: int = 1000
    beta_min: float = 1e-4
    beta_max: float = 0.02
    power: float = 1.0
    first: int = 0

    def __post_init__(self):
        """Refuse chains whose noise does not grow; messages start with the config key."""
        if self.steps < 2:
            raise ValueError(f"steps: {self.steps} is less than 2")
        if not self.beta_min <= self.beta_max < 1:
            raise ValueError(f"beta_max: {self.beta_max} is not in [beta_min, 1)")
        if self.power <= 0:
            raise ValueError(f"power: {self.power} is not positive")
        # The line through the betas' roots must still be positive half a step before step 0.
        low, high = (beta ** (1 / self.power) for beta in (self.beta_min, self.beta_max))
        least = ((high - low) / (2 * (self.steps - 1))) ** self.power
        if self.beta_min <= least:
            raise ValueError(
                f"beta_min: {self.beta_min} is too small for {self.steps} steps up to"
                f" {self.beta_max}: sigma would not increase before the first step; use more than"
                f" {least:.2g}"
            )
        self._rates()

    def alpha_sigma(self, t):
        log_alpha = -self._minus_log_square(t) / 2
        return jnp.exp(log_alpha), jnp.sqrt(-jnp.expm1(2 * log_alpha))

    def t_from_logsnr(self, logsnr):
        # Solve -log alpha^2 = softplus(-logsnr), nearly quadratic in t: the root of the quadratic
        # (see LinearVP) has two correct digits, which each step of Newton's method doubles.
        wanted = jax.nn.softplus(-logsnr)
        rates = self._rates()
        first, slope = rates[0], sum(rates[1:])
        t = 2 * wanted / (first + jnp.sqrt(first**2 + 4 * slope * wanted))
        for _ in range(4):
            found, rate = jax.jvp(self._minus_log_square, (t,), (jnp.ones_like(t),))
            t = t - (found - wanted) / rate
        return t

    def network_input(self, t):
        return jnp.ones_like(t), self.steps * t - 1 + self.first

    def _rates(self):
        return _rates(self.steps, self.beta_min, self.beta_max, self.power)

    def _minus_log_square(self, t):
        """-log(alpha^2) at times t, without cancellation near t = 0."""
        rate = jnp.zeros_like(t)
        for coefficient in reversed(self._rates()):
            rate = rate * t + coefficient
        return t * rate


@functools.lru_cache
def _rates(steps: int, beta_min: float, beta_max: float, power: float) -> tuple[float, ...]:
    """Coefficients, lowest first, of the polynomial in t that fits -log(alpha^2) / t at the steps.

    A sum of values of a smooth function is smooth in its upper limit (Euler-Maclaurin): degree 6
    fits DDPM's chain to 1e-13, and 8 is enough for steeper ones.
    """
    t = np.arange(1, steps + 1) / steps
    betas = np.linspace(beta_min ** (1 / power), beta_max ** (1 / power), steps) ** power
    wanted = -np.cumsum(np.log1p(-betas)) / t
    fit = np.polynomial.Polynomial.fit(t, wanted, min(8, steps - 1), domain=[0, 1])
    if (error := abs(fit(t) / wanted - 1).max()) > 1e-7:
        raise ValueError(
            f"beta_max: {beta_max} is too large: the noise is not smooth between {steps} steps"
            f" (error {error:.1g})"
        )
    return tuple(fit.convert().coef.tolist())


@dataclasses.dataclass(frozen=True)
class EDM:
    """alpha = 1, sigma from sigma_min to sigma_max, linear in t (arXiv:2206.00364).

    An Euler or Heun step in t is a step in sigma, as in the paper. The network's inputs are
    x_t / sqrt(sigma^2 + sigma_data^2) and log(sigma) / 4 (table 1 there).
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5

    def alpha_sigma(self, t):
        return jnp.ones_like(t), self.sigma_min + (self.sigma_max - self.sigma_min) * t

    def t_from_logsnr(self, logsnr):
        sigma = jnp.exp(-logsnr / 2)
        return (sigma - self.sigma_min) / (self.sigma_max - self.sigma_min)

    def network_input(self, t):
        _, sigma = self.alpha_sigma(t)
        return jax.lax.rsqrt(sigma**2 + self.sigma_data**2), jnp.log(sigma) / 4
