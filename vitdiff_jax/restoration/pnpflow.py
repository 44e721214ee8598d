"""PnP-Flow (arXiv:2410.02423): a step towards y, fresh noise, denoise; again with less noise.

    z = v - t^power / |A|^2 * A^* (A v - y)
    v = mean over draws of E[x | alpha z + sigma eps, t]

One image that fits, no sample: what comes out hardly varies. Written for flows, where power is
their exponent; any schedule serves, since only alpha, sigma and t enter. For operators that are not
linear the step is down the gradient of |y - A(v)|^2 / 2, with |A| taken as 1.

Bias: an average of denoisings; where the operator is zero the result shrinks to the prior's mean
as the steps grow, and a measurement without noise is reproduced only up to the last denoisings.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion.process import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.operators import Operator
from vitdiff_jax.operators.inverse import squared_norm
from vitdiff_jax.restoration import Traits
from vitdiff_jax.samplers import fresh_noise

TRAITS = Traits("any")


def calls(steps: int, draws: int = 5, **_) -> int:
    """`draws` a step."""
    return steps * draws


def restore(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array, *,
    operator: Operator, y: jax.Array, noise_std: jax.Array | float,
    power: float = 0.5, draws: int = 5,
) -> jax.Array:  # fmt: skip
    """See `restoration`; noise_std is not used. draws: of noise, averaged, in each step."""
    norm = squared_norm(operator, x)

    def misfit(v):
        return jnp.sum(jnp.abs(y - operator.forward(v)) ** 2) / 2

    def step(v, now):
        t, i = now
        t = jnp.broadcast_to(t, x.shape[:1])
        alpha, sigma = (per_image(a) for a in schedule.alpha_sigma(t))
        z = v - per_image(t**power) / norm * jax.grad(misfit)(v)

        def draw(total, k):
            noise = fresh_noise(keys, draws * i + k, x)
            return total + denoise(alpha * z + sigma * noise, t) / draws, None

        return jax.lax.scan(draw, jnp.zeros_like(x), jnp.arange(draws))[0], None

    grid = jnp.asarray(times[:-1], x.dtype)
    return jax.lax.scan(step, jnp.zeros_like(x), (grid, jnp.arange(len(grid))))[0]
