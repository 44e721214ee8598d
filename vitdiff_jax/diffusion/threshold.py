"""Thresholding: an estimate of x is brought back into [-1, 1] where images are.

It belongs around everything else, guidance included, because it is guidance that leaves the range.
What comes out is no expectation any more: restorers whose mathematics needs one, and anything that
differentiates the denoiser, are better without. Latents have no such range.
"""

import jax.numpy as jnp

from vitdiff_jax.diffusion import Denoise

KINDS = ("none", "static", "dynamic")


def threshold(denoise: Denoise, kind: str, quantile: float = 0.995) -> Denoise:
    """A `Denoise` with all values in [-1, 1] (for "none": the given one).

    static: clipped, as in DDPM's samples.
    dynamic: clipped to [-s, s] and divided by s, where s is that quantile of |x| over all of an
        image's values, at least 1 (arXiv:2205.11487, section 2.3).
    """
    if kind not in KINDS:
        raise ValueError(f"threshold: {kind!r} is none of {', '.join(KINDS)}")
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
