"""SDEdit (arXiv:2108.01073): add noise to an image up to some level, then denoise it.

Details finer than the noise are resampled, coarser structure is kept: strokes become an image, a
class or prompt changes its content. It is not a restorer, as there is no measurement.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.schedules import Schedule, per_image
from vitdiff_jax.samplers import fresh_noise, sampling_loop
from vitdiff_jax.samplers.ancestral import coefficients


def edit(
    denoise: Denoise, schedule: Schedule, times: np.ndarray, image: jax.Array, keys: jax.Array,
    kept: jax.Array | float = 0.0,
) -> jax.Array:  # fmt: skip
    """Ancestral steps from the image [B, H, W, C], noised to times[0] < 1, to times[-1].

    kept: 1 where the image must not change, 0 where it may; [H, W, 1] or [B, H, W, 1].
    """

    def noised(t, i):
        alpha, sigma = (per_image(a) for a in schedule.alpha_sigma(t))
        return alpha * image + sigma * fresh_noise(keys, i, image)

    def step(x, t, s, i):
        a, b, tau = coefficients(schedule, t, s)
        new = a * denoise(x, t) + b * x + tau * fresh_noise(keys, 2 * i + 1, x)
        return kept * noised(s, 2 * i + 2) + (1 - kept) * new

    def clean(x, t):
        return kept * image + (1 - kept) * denoise(x, t)

    start = jnp.full(len(image), times[0], image.dtype)
    return sampling_loop(step, clean, schedule, times, noised(start, 0))
