"""The diffusion process: prediction types, losses, and the estimate of x from the network's output.

A prediction type is a pair (a, b) of functions of (t, alpha, sigma): the network's output estimates
a x + b eps. Together with x_t = alpha x + sigma eps this is a 2x2 system, whose solution

    x = (b x_t - sigma out) / (alpha b - sigma a)

covers every prediction type on every schedule. The determinant det = alpha b - sigma a also
converts errors: the error of a_s x + b_s eps, with eps from x_t, is (det_s / sigma) (x_hat - x).

With a learned variance the network outputs twice the channels: the prediction, then v, which
interpolates the log-variance of a reverse step between its bounds by (v + 1) / 2, see `reverse`.
"""

import dataclasses
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp

from vitdiff_jax.diffusion import Denoise, reverse
from vitdiff_jax.diffusion.schedules import (
    EDM,
    DiscreteVP,
    RectifiedFlow,
    Schedule,
    derivatives,
    ends,
    per_image,
)

Network = Callable[[jax.Array, jax.Array], jax.Array]
"""(scaled x_t [B, H, W, C], time feature [B]) -> output, with parameters and condition bound.

A network for average velocities also takes (time feature, length of the interval) [B, 2].
"""

PREDICTIONS = ("x", "eps", "v", "u", "edm")
SIGMA_FLOOR = 1e-20
"""x predictions are singular at sigma = 0, where det = -sigma; the floor turns 0/0 into out."""


def target_coefficients(
    prediction: str, schedule: Schedule, t: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(a, b, alpha, sigma) at times t, where the target of `prediction` is a x + b eps.

    x:   (1, 0), singular at sigma = 0, where sigma is floored.
    eps: (0, 1), singular at alpha = 0 (refused by `Process`).
    v:   (-sigma, alpha), arXiv:2202.00512; never singular.
    u:   (alpha', sigma'), the velocity dx_t/dt, arXiv:2210.02747; undefined at t = 0 for LinearVP
         and DiscreteVP.
    edm: F of arXiv:2206.00364, eq. 7, at the noise-to-signal ratio sigma / alpha: with
         r = sqrt(sigma^2 + alpha^2 sigma_data^2), a = sigma / (sigma_data r) and
         b = -alpha sigma_data / r; never singular.
    """
    alpha, sigma = schedule.alpha_sigma(t)
    if prediction == "x":
        return jnp.ones_like(t), jnp.zeros_like(t), alpha, jnp.maximum(sigma, SIGMA_FLOOR)
    if prediction == "eps":
        return jnp.zeros_like(t), jnp.ones_like(t), alpha, sigma
    if prediction == "v":
        return -sigma, alpha, alpha, sigma
    if prediction == "u":
        return *derivatives(schedule, t), alpha, sigma
    sigma_data = schedule.sigma_data if isinstance(schedule, EDM) else 0.5
    r = jnp.sqrt(sigma**2 + (alpha * sigma_data) ** 2)
    return sigma / (sigma_data * r), -alpha * sigma_data / r, alpha, sigma


@dataclasses.dataclass(frozen=True)
class Process:
    """A schedule and a prediction type, with the loss and the denoiser that follow.

    prediction: the target of the network: x, eps, v, u or edm.
    loss_space: which of these the squared error is taken in.
    min_snr: gamma of min-SNR weighting, a factor min(1, gamma / SNR); 0 for none. With
        loss_space eps it is that of arXiv:2303.09556 for every prediction type.
    floor: JiT's lower bound of 0.05 on t in divisions by t, in the loss and in the sampler
        (x predictions on rectified flow only). The default 0 is exact.
    learned_variance: the number of steps of the chain whose reverse variance the network also
        predicts (DiT: 1000); 0 for none. The loss is then the hybrid loss of arXiv:2102.09672.
    """

    schedule: Schedule
    prediction: str = "x"
    loss_space: str = "u"
    min_snr: float = 0.0
    floor: float = 0.0
    learned_variance: int = 0

    def __post_init__(self):
        """Refuse invalid options; messages start with the config key."""
        for name in ("prediction", "loss_space"):
            if (value := getattr(self, name)) not in PREDICTIONS:
                raise ValueError(f"{name}: {value!r} is not one of {', '.join(PREDICTIONS)}")
        kind = type(self.schedule).__name__
        if self.prediction == "eps" and ends(self.schedule)[0] == 0:
            raise ValueError(
                f"prediction: eps does not determine x at t = 1, where alpha of {kind} is 0;"
                " use x, v or u"
            )
        if self.min_snr < 0:
            raise ValueError(f"min_snr: {self.min_snr} is negative")
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor: {self.floor} is not in [0, 1)")
        if self.floor and not (
            isinstance(self.schedule, RectifiedFlow)
            and self.prediction == "x"
            and self.loss_space in ("x", "u")
        ):
            raise ValueError(
                "floor: JiT's floor requires x prediction on RectifiedFlow; set it to 0"
            )
        if self.learned_variance:
            self._check_learned_variance()

    def _check_learned_variance(self):
        steps, kind = self.learned_variance, type(self.schedule).__name__
        if steps < 2:
            raise ValueError(
                f"learned_variance: a chain of {steps} steps is too short; 0 switches it off"
            )
        if ends(self.schedule)[1] > 0:
            raise ValueError(
                f"learned_variance: the chain must end at the data, but {kind} has sigma(0) > 0;"
                " set it to 0"
            )
        if isinstance(self.schedule, DiscreteVP) and steps != self.schedule.steps:
            raise ValueError(
                f"learned_variance: {steps} must equal the number of steps of {kind},"
                f" {self.schedule.steps}"
            )
        if self.floor:
            raise ValueError(
                "floor: not supported with a learned variance; set one of the two to 0"
            )

    def add_noise(self, x: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """x_t for images x and noise eps [B, H, W, C] at times t [B]."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        return per_image(alpha) * x + per_image(sigma) * eps

    def target(self, x: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """The network's target, a x + b eps [B, H, W, C]."""
        a, b, _, _ = target_coefficients(self.prediction, self.schedule, t)
        return per_image(a) * x + per_image(b) * eps

    def to_x(self, out: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """The estimate of x from the network's output at (x_t, t)."""
        out, _ = self._split(out, x_t)
        a, b, alpha, sigma = target_coefficients(self.prediction, self.schedule, t)
        det = alpha * b - sigma * a
        return per_image(b / det) * x_t - per_image(sigma / det) * out

    def loss(self, out: jax.Array, x: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """The weighted squared error per image [B], averaged over pixels and channels.

        With a learned variance plus `reverse.vlb_bpd` of one step of the chain, as in DiT: with
        weight 1, in bits per dimension, and without a gradient through the estimate of x. The
        timestep distribution should then be `discrete`.
        """
        prediction, variance = self._split(out, x)
        error = jnp.mean((prediction - self.target(x, eps, t)) ** 2, (1, 2, 3))
        loss = self.loss_weight(t) * error
        if variance is None:
            return loss
        x_hat = jax.lax.stop_gradient(self.to_x(out, self.add_noise(x, eps, t), t))
        return loss + reverse.vlb_bpd(
            self.schedule, self.learned_variance, x, x_hat, (variance + 1) / 2, t
        )

    def loss_weight(self, t: jax.Array) -> jax.Array:
        """The weight [B] of the squared error of the network's output."""
        weight = jnp.ones_like(t)
        if self.loss_space != self.prediction:
            ratio = self._det(self.loss_space, t) / self._det(self.prediction, t)
            weight = ratio**2
        if self.floor and self.loss_space == "u":
            weight = weight * jnp.minimum(1, t / self.floor) ** 2
        if self.min_snr:
            alpha, sigma = self.schedule.alpha_sigma(t)
            weight = weight * jnp.minimum(1, self.min_snr * sigma**2 / alpha**2)
        return weight

    def _det(self, prediction: str, t: jax.Array) -> jax.Array:
        a, b, alpha, sigma = target_coefficients(prediction, self.schedule, t)
        return alpha * b - sigma * a

    def denoiser(self, network: Network, to: jax.Array | None = None) -> Denoise:
        """A `Denoise` from a network.

        to: earlier times, [B] or []; the result is then not an expectation, but where the straight
        line from x_t through the x of that time ends, see `average_velocity`.

        Below the floor the estimate is moved towards x_t, so that the velocity that a sampler
        computes from it, (x_t - x_hat) / t, equals JiT's (x_t - x_hat) / max(t, floor).
        """

        def denoise(x_t, t):
            x = self.to_x(self.call(network, x_t, t, to), x_t, t)
            if self.floor:
                x = x_t + per_image(jnp.minimum(1, t / self.floor)) * (x - x_t)
            return x

        return denoise

    def variance(self, network: Network) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """(x_t [B, H, W, C], t [B]) -> the network's interpolation weight, see `reverse`.

        0 is the smallest, 1 the largest log-variance; the network may exceed this range. In a
        program that also calls the `denoiser` at the same point, XLA merges the two calls.
        """
        if not self.learned_variance:
            raise ValueError("learned_variance: is 0; this model has not learned a variance")

        def fraction(x_t, t):
            _, variance = self._split(self.call(network, x_t, t), x_t)
            return (cast(jax.Array, variance) + 1) / 2

        return fraction

    def call(
        self, network: Network, x_t: jax.Array, t: jax.Array, to: jax.Array | None = None
    ) -> jax.Array:
        """The network's output at x_t [B, H, W, C], t [B]; to: see `denoiser`."""
        scale, time = self.schedule.network_input(t)
        if to is not None:
            time = jnp.stack([time, t - to], 1)  # [B, 2]
        return network(per_image(scale) * x_t, time)

    def _split(self, out, x):
        """The network's output for images like x as (prediction, v or None).

        Learned variances may be ignored, as for the published SiT.
        """
        channels = x.shape[-1]
        wanted = [2 * channels] if self.learned_variance else [channels, 2 * channels]
        if out.shape[-1] not in wanted:
            raise ValueError(
                f"learned_variance: with {self.learned_variance} the network must output"
                f" {wanted[0]} channels for images of {channels}, not {out.shape[-1]}"
            )
        return out[..., :channels], out[..., channels:] if self.learned_variance else None
