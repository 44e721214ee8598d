"""RePaint (arXiv:2201.09865): inpainting by ancestral steps with the known pixels put in.

After each step the known pixels are replaced by alpha_s y + sigma_s z, fresh noise on the known
image. So that both parts come to fit, each `jump` steps are walked `resample` times, with the
forward process x_t | x_s between them.

Bias: noise in y is taken for image and reproduced. Without resampling the unknown pixels of
Gaussian images are less tied to the known ones than in the posterior, however many the steps (their
mean is a quarter of a standard deviation off in the tests), since each step meets noise over y that
is newer than they are. With more resampling they tend to the posterior for a y without noise.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion.process import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, ends, per_image
from vitdiff_jax.operators.mask import Mask
from vitdiff_jax.restoration import Traits
from vitdiff_jax.samplers import fresh_noise
from vitdiff_jax.samplers.ancestral import weights

TRAITS = Traits("mask", prior=True, consistent=True)


def path(steps: int, jump: int, resample: int) -> list[int]:
    """Places on the grid of times, 0 the noisiest, in the order in which they are visited."""
    found = [0]
    for end in range(steps % jump or jump, steps + 1, jump):
        start = found[-1]
        down = list(range(start + 1, end + 1))
        up = list(range(end - 1, start - 1, -1))
        found += down + (up + down) * (resample - 1)
    return found


def calls(steps: int, resample: int = 10, **_) -> int:
    """One for each step down; fewer on schedules that end with noise, whose end is walked once."""
    return steps * resample


def restore(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array, *,
    operator: Mask, y: jax.Array, noise_std: jax.Array | float,
    jump: int = 10, resample: int = 10,
) -> jax.Array:  # fmt: skip
    """See `restoration`; noise_std is not used. jump: steps of a piece. resample: its walks."""
    known = jnp.asarray(operator.known, x.dtype)
    grid, places = jnp.asarray(times, x.dtype), path(len(times) - 1, jump, resample)

    def down(x, t, s, noise):
        a, b, tau = weights(schedule, t, s)
        unknown = a * denoise(x, t) + b * x + tau * noise
        alpha, sigma = (per_image(v) for v in schedule.alpha_sigma(s))
        return known * (alpha * y + sigma * noise) + (1 - known) * unknown

    def up(x, s, t, noise):
        alpha_t, sigma_t = (per_image(a) for a in schedule.alpha_sigma(t))
        alpha_s, sigma_s = (per_image(a) for a in schedule.alpha_sigma(s))
        ratio = alpha_t / alpha_s
        return ratio * x + jnp.sqrt(jnp.maximum(sigma_t**2 - (ratio * sigma_s) ** 2, 0)) * noise

    def body(x, move):
        here, there, i = move
        t, s = (jnp.broadcast_to(grid[a], x.shape[:1]) for a in (here, there))
        return jax.lax.cond(here < there, down, up, x, t, s, fresh_noise(keys, i, x)), None

    moves = jnp.asarray(places[:-1]), jnp.asarray(places[1:]), jnp.arange(len(places) - 1)
    x, _ = jax.lax.scan(body, x, moves)
    if times[-1] == 0 and ends(schedule)[1] > 0:
        x = known * y + (1 - known) * denoise(x, jnp.zeros(x.shape[:1], x.dtype))
    return x
