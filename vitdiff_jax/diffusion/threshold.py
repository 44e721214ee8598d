"""Thresholding: keep the estimate of x within [-1, 1], the range of images.

It is applied last, after guidance, which is what exceeds the range. The result is no longer an
expectation: restorers that rely on one, or that differentiate the denoiser, are better without.
Latents have no such range.
"""

import jax.numpy as jnp

from vitdiff_jax.diffusion import Denoise

KINDS = ("none", "static", "dynamic")


def threshold(denoise: Denoise, kind: str, quantile: float = 0.995) -> Denoise:
    """A `Denoise` with values in [-1, 1]; for kind "none" the given one.

    static: clipping, as in DDPM.
    dynamic: clip to [-s, s] and divide by s, where s is this quantile of |x| over all values of an
        image, at least 1 (arXiv:2205.11487, section 2.3).
    """
    if kind not in KINDS:
        raise ValueError(f"threshold: {kind!r} is not one of {', '.join(KINDS)}")
    if not 0 < quantile <= 1:
        raise ValueError(f"threshold_quantile: {quantile} is not in (0, 1]")
    if kind == "none":
        return denoise

    def clipped(x_t, t):
        return jnp.clip(denoise(x_t, t), -1, 1)

    def scaled(x_t, t):
        x = denoise(x_t, t)
        s = jnp.quantile(jnp.abs(x), quantile, (1, 2, 3), keepdims=True)
        s = jnp.maximum(s, 1)
        return jnp.clip(x, -s, s) / s

    return clipped if kind == "static" else scaled
