"""PnP-Flow (arXiv:2410.02423): a step towards y, fresh noise, denoise; again with less noise.

    z = v - t^power / |A|^2 * A^* (A v - y)
    v = mean over draws of E[x | alpha z + sigma eps, t]

One image that fits, no sample: what comes out hardly varies. Written for flows, where power is
their exponent; any schedule serves, since only alpha, sigma and t enter. For operators that are not
linear the step is down the gradient of |y - A(v)|^2 / 2, with |A| taken as 1.

Bias: for Gaussian images, as the steps grow, y is reproduced together with its noise (only nearly
after few steps, even if it has none), and the rest tends to the mean that goes with that y and to
1 / (2 draws) of its covariance; so does all of the image where the operator is zero.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion.process import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, ends, per_image
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
    norm = jnp.where(norm > 0, norm, 1)  # where nothing is measured, there is no step

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

    noisy = times[-1] == 0 and ends(schedule)[1] > 0  # there is something to denoise at the end
    grid = jnp.asarray(times if noisy else times[:-1], x.dtype)
    return jax.lax.scan(step, jnp.zeros_like(x), (grid, jnp.arange(len(grid))))[0]
