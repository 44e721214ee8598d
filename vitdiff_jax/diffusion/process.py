"""The diffusion process: what the network predicts, and how that becomes an estimate of x.

A prediction is a pair (a, b) of functions of (t, alpha, sigma): the network's output estimates
a x + b eps. Together with x_t = alpha x + sigma eps this is a 2x2 system, whose solution

    x = (b x_t - sigma out) / (alpha b - sigma a)

serves every prediction on every schedule. The determinant det = alpha b - sigma a also converts
errors: a_s x + b_s eps, with eps taken from x_t, is wrong by (det_s / sigma) (x_hat - x).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vitdiff_jax.diffusion.schedules import (
    EDM,
    RectifiedFlow,
    Schedule,
    derivatives,
    ends,
    per_image,
)

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
"""(x_t [B, H, W, C], t [B]) -> E[x | x_t] [B, H, W, C], values in [-1, 1] units."""

PREDICTIONS = ("x", "eps", "v", "u", "edm")
SIGMA_FLOOR = 1e-20
"""x predictions are singular in sigma = 0, where det = -sigma; the floor makes 0/0 into out."""


def pair(
    prediction: str, schedule: Schedule, t: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(a, b, alpha, sigma) at times t, so that `prediction` estimates a x + b eps.

    x:   (1, 0), singular at sigma = 0, where sigma is floored.
    eps: (0, 1), singular at alpha = 0 (refused by `Process`).
    v:   (-sigma, alpha), arXiv:2202.00512; singular nowhere.
    u:   (alpha', sigma'), the velocity dx_t/dt, arXiv:2210.02747; LinearVP has none at t = 0.
    edm: F of arXiv:2206.00364, eq. 7, at the noise-to-signal ratio sigma / alpha: with
         r = sqrt(sigma^2 + alpha^2 sigma_data^2), a = sigma / (sigma_data r) and
         b = -alpha sigma_data / r; singular nowhere.
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
    """A schedule, what the network predicts, and the losses and denoisers that follow.

    prediction: what the network's output estimates: x, eps, v, u or edm.
    loss_space: in which of these spaces the squared error is taken.
    min_snr: gamma of min-SNR weighting, a factor min(1, gamma / SNR); 0 for none. With
        loss_space eps it is that of arXiv:2303.09556 for every prediction.
    floor: JiT's lower bound of 0.05 on t where it divides by t, in the loss and in the sampler
        (x predictions on rectified flow only). 0, the mathematics, is the default.
    """

    schedule: Schedule
    prediction: str = "x"
    loss_space: str = "u"
    min_snr: float = 0.0
    floor: float = 0.0

    def __post_init__(self):
        """Refuse what cannot work; messages start with the config key they are about."""
        for name in ("prediction", "loss_space"):
            if (value := getattr(self, name)) not in PREDICTIONS:
                raise ValueError(f"{name}: {value!r} is none of {', '.join(PREDICTIONS)}")
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
                "floor: JiT's floor is for x predictions of RectifiedFlow; set it to 0"
            )

    def noise(self, x: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """x_t for images x and noise eps [B, H, W, C] at times t [B]."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        return per_image(alpha) * x + per_image(sigma) * eps

    def target(self, x: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """What a perfect network puts out: a x + b eps [B, H, W, C]."""
        a, b, _, _ = pair(self.prediction, self.schedule, t)
        return per_image(a) * x + per_image(b) * eps

    def to_x(self, out: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """The estimate of x that the network's output at (x_t, t) stands for."""
        a, b, alpha, sigma = pair(self.prediction, self.schedule, t)
        det = alpha * b - sigma * a
        return per_image(b / det) * x_t - per_image(sigma / det) * out

    def loss(self, out: jax.Array, x: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """The weighted squared error per image [B], averaged over pixels and channels."""
        error = jnp.mean((out - self.target(x, eps, t)) ** 2, (1, 2, 3))
        return self.loss_weight(t) * error

    def loss_weight(self, t: jax.Array) -> jax.Array:
        """The weight [B] of the squared error of the network's own output."""
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
        a, b, alpha, sigma = pair(prediction, self.schedule, t)
        return alpha * b - sigma * a

    def denoiser(self, network: Callable[[jax.Array, jax.Array], jax.Array]) -> Denoise:
        """A `Denoise` from a network (scaled x_t, time feature) -> out with its condition bound.

        With a floor, the estimate is moved towards x_t below it, so that the velocity which any
        sampler derives from it, (x_t - x_hat) / t, is JiT's (x_t - x_hat) / max(t, floor).
        """

        def denoise(x_t, t):
            scale, time = self.schedule.network_input(t)
            x = self.to_x(network(per_image(scale) * x_t, time), x_t, t)
            if self.floor:
                x = x_t + per_image(jnp.minimum(1, t / self.floor)) * (x - x_t)
            return x

        return denoise


def guide(
    denoise: Denoise, denoise_null: Denoise, scale: float, low: float = 0.0, high: float = 1.0
) -> Denoise:
    """Classifier-free guidance (arXiv:2207.12598) for low <= t <= high (arXiv:2404.07724).

    x = x_null + scale (x_cond - x_null); outside the interval, and with scale 1, `denoise` alone,
    and the second network is not run. The result is no longer an expectation. All images of a
    batch must be at one time.
    """
    if scale == 1:
        return denoise

    def guided(x_t, t):
        x = denoise(x_t, t)
        return jax.lax.cond(
            (low <= t[0]) & (t[0] <= high),
            lambda: (null := denoise_null(x_t, t)) + scale * (x - null),
            lambda: x,
        )

    return guided
