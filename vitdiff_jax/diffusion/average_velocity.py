"""Average velocities: a network that passes from time t to r in one call (MeanFlow).

On the path through z_t, with velocity v = dz/dt, the average velocity and what follows from its
definition by differentiation (arXiv:2505.13447, eq. 6) are

    u(z_t, t, r) = (z_t - z_r) / (t - r)
    u + (t - r) du/dt = v,    du/dt = (v . grad_z + d/dt) u

The loss is the squared error of the left side, where du/dt is a Jacobian-vector product without a
gradient, against e - x, whose expectation v is. With r = t it is flow matching, and the network
then predicts v. Two papers differ in the v of the product: MeanFlow takes e - x, iMF
(arXiv:2512.02012) the network's own at r = t, so that the left side depends on z_t alone.

The network predicts x as in pMF (arXiv:2601.22158), or anything else: u is the velocity of the
straight line through z_t and its estimate of x, (z_t - x_hat) / t on rectified flow.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vitdiff_jax.diffusion.process import Network, Process
from vitdiff_jax.diffusion.schedules import RectifiedFlow, per_image

TANGENTS = ("own", "data")
EPSILON = 0.01
"""The constant in the adaptive weight."""


@dataclasses.dataclass(frozen=True)
class AverageVelocity:
    """How average velocities are learned.

    share: of the images that have r < t; the others have r = t. 0: no average velocities.
    tangent: the velocity along which the Jacobian-vector product is taken: "own", the network's at
        r = t (iMF), or "data", e - x (MeanFlow).
    power: of the adaptive weight, 1 / (squared error + 0.01)^power for each image; 0: none.
    guidance: the scale of classifier-free guidance that the network learns to have without a second
        call; 1: none. This costs one more call in a step.
    """

    share: float = 0.0
    tangent: str = "own"
    power: float = 1.0
    guidance: float = 1.0

    def __post_init__(self):
        """Refuse invalid options; messages start with the config key."""
        if self.tangent not in TANGENTS:
            raise ValueError(f"tangent: {self.tangent!r} is not one of {', '.join(TANGENTS)}")

    def check(self, process: Process) -> None:
        """Raise `ValueError("<option>: ...")` where the process has no average velocities here."""
        if not isinstance(process.schedule, RectifiedFlow):
            kind = type(process.schedule).__name__
            raise ValueError(f"schedule: {kind} has no average velocities here; use RectifiedFlow")
        for name, wanted in (("loss_space", "u"), ("min_snr", 0.0), ("learned_variance", 0)):
            if (value := getattr(process, name)) != wanted:
                raise ValueError(f"{name}: {value!r}, but average velocities need {wanted!r}")

    def earlier(
        self,
        distribution: Callable[..., jax.Array],
        process: Process,
        keys: jax.Array,
        t: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """(t, r) [B], r <= t, from times t [B]: with another draw from the same distribution."""
        u = jax.vmap(lambda key: jax.random.uniform(key, (2,), minval=1e-6, maxval=1 - 1e-6))(keys)
        other = distribution(u[:, 0], process.schedule)
        later = jnp.maximum(t, other)
        return later, jnp.where(u[:, 1] < self.share, jnp.minimum(t, other), later)

    def loss(
        self,
        process: Process,
        network: Network,
        null: Network,
        x: jax.Array,
        eps: jax.Array,
        t: jax.Array,
        r: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """(weighted loss, squared error) per image [B], the second averaged over its values.

        network, null: with the conditions and without; both are the same where those are dropped.
        """
        z = process.add_noise(x, eps, t)

        def velocity(z, t, r, network=network):
            return (z - process.denoiser(network, r)(z, t)) / per_image(t)

        target = eps * process.schedule.alpha_sigma(jnp.ones(()))[1] - x
        own = target
        if self.guidance != 1 or self.tangent == "own":
            own = jax.lax.stop_gradient(velocity(z, t, t))
        if self.guidance != 1:
            own_null = jax.lax.stop_gradient(velocity(z, t, t, null))
            target = target + (1 - 1 / self.guidance) * (own - own_null)
        tangent = own if self.tangent == "own" else target
        u, du = jax.jvp(lambda z, t: velocity(z, t, r), (z, t), (tangent, jnp.ones_like(t)))
        error = u + per_image(t - r) * jax.lax.stop_gradient(du) - target
        squares = jnp.sum(error**2, (1, 2, 3))
        weight = jax.lax.stop_gradient(squares + EPSILON) ** -self.power
        return weight * squares, squares / x[0].size
