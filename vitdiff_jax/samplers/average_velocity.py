"""Steps by average velocities (arXiv:2505.13447): x_s = x_t - (t - s) u(x_t, t, s), in any number.

One step from noise to the data is one network call. For models with average velocities on
`RectifiedFlow`; the other samplers use such a model as any other.
"""

from collections.abc import Callable

import jax
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.samplers import sampling_loop


def nfe(steps: int, **_) -> int:
    """One per step."""
    return steps


def sample(
    denoise: Denoise,
    schedule: Schedule,
    times: np.ndarray,
    x: jax.Array,
    keys: jax.Array,
    *,
    denoise_to: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """See `samplers`. Exact for exact average velocities.

    denoise_to: (x_t [B, H, W, C], t [B], s []) -> the x that the straight line from x_t through x_s
        passes at time 0: `Process.denoiser`, with guidance.
    """

    def step(x, t, s, i):
        share = per_image(s / t)
        return share * x + (1 - share) * denoise_to(x, t, s[0])

    return sampling_loop(step, denoise, schedule, times, x)
