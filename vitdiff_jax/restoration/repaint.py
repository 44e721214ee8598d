"""RePaint (arXiv:2201.09865): inpainting by ancestral steps with replacement of the known pixels.

After each step the known pixels are replaced by alpha_s y + sigma_s z, with fresh noise. To
harmonise both parts, every `jump` steps are repeated `resample` times, with the forward process
x_t | x_s in between.

Bias: noise in y is reproduced. Without resampling the unknown pixels of Gaussian images depend on
the known ones less than in the posterior, for any number of steps (in the tests their mean is off
by a quarter of a standard deviation), since the noise on the known pixels is fresh in each step.
With more resampling they tend to the posterior for a noiseless y.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise, nth_call
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.operators.mask import Mask
from vitdiff_jax.restoration import Traits
from vitdiff_jax.samplers import fresh_noise, needs_final_denoise
from vitdiff_jax.samplers.ancestral import coefficients

TRAITS = Traits("mask", prior=True, consistent=True)


def path(steps: int, jump: int, resample: int) -> list[int]:
    """Indices of the time grid, 0 the noisiest, in the order in which they are visited."""
    found = [0]
    for end in range(steps % jump or jump, steps + 1, jump):
        start = found[-1]
        down = list(range(start + 1, end + 1))
        up = list(range(end - 1, start - 1, -1))
        found += down + (up + down) * (resample - 1)
    return found


def nfe(steps: int, resample: int = 10, final: bool = False, **_) -> int:
    """One per denoising step; the final one runs once."""
    return (steps - final) * resample + final


def restore(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, x: jax.Array, keys: jax.Array, *,
    operator: Mask, y: jax.Array, noise_std: jax.Array | float,
    jump: int = 10, resample: int = 10,
) -> jax.Array:  # fmt: skip
    """See `restoration`; noise_std is not used. jump: steps per segment. resample: its runs."""
    known = jnp.asarray(operator.known, x.dtype)
    grid, places = jnp.asarray(times, x.dtype), path(len(times) - 1, jump, resample)

    def down(x, t, s, noise, i):
        a, b, tau = coefficients(schedule, t, s)
        unknown = a * nth_call(denoise, i)(x, t) + b * x + tau * noise
        alpha, sigma = (per_image(v) for v in schedule.alpha_sigma(s))
        return known * (alpha * y + sigma * noise) + (1 - known) * unknown

    def up(x, s, t, noise, i):
        alpha_t, sigma_t = (per_image(a) for a in schedule.alpha_sigma(t))
        alpha_s, sigma_s = (per_image(a) for a in schedule.alpha_sigma(s))
        ratio = alpha_t / alpha_s
        return ratio * x + jnp.sqrt(jnp.maximum(sigma_t**2 - (ratio * sigma_s) ** 2, 0)) * noise

    def body(x, move):
        here, there, i = move
        t, s = (jnp.broadcast_to(grid[a], x.shape[:1]) for a in (here, there))
        return jax.lax.cond(here < there, down, up, x, t, s, fresh_noise(keys, i, x), i), None

    moves = jnp.asarray(places[:-1]), jnp.asarray(places[1:]), jnp.arange(len(places) - 1)
    x, _ = jax.lax.scan(body, x, moves)
    if needs_final_denoise(schedule, times):
        x = known * y + (1 - known) * denoise(x, jnp.zeros(x.shape[:1], x.dtype))
    return x
