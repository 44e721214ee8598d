"""Accelerated MRI: a subset of the samples of the unitary Fourier transform, the others zero.

"lines": whole columns of k-space as in fastMRI, all central ones and a random subset of the others;
"random": single points with a density that increases towards the centre.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.operators import Shape, register, static
from vitdiff_jax.operators.svd import Svd


@register
class FourierMask:
    """known: 1 for acquired samples, [H, W, 1], zero frequency first."""

    known: jax.Array | np.ndarray
    channels: int = static()
    linear: bool = static(default=True)

    def forward(self, x: jax.Array) -> jax.Array:
        return jnp.asarray(self.known, x.dtype) * fft2(x)

    def svd(self) -> Svd:
        """The SVD on real images, whose coefficients at k and -k are conjugate.

        If both were acquired the singular value is 1, if only one was, 1 / sqrt(2).
        """
        known = jnp.asarray(self.known)
        count = known + _opposite(known)  # 0, 1, 2; 0 or 2 where k and -k coincide
        values = jnp.repeat(jnp.sqrt(count / 2), self.channels, -1)

        def u_adjoint(y):
            both = known * y + _opposite(known * jnp.conj(y))
            return both / jnp.where(count > 0, jnp.sqrt(2 * count), 1)

        return Svd(values, fft2, lambda z: ifft2(z).real, u_adjoint)


def fft2(x: jax.Array) -> jax.Array:
    """The unitary Fourier transform of [B, H, W, C] over H and W."""
    return jnp.fft.fft2(x, axes=(1, 2), norm="ortho")


def ifft2(z: jax.Array) -> jax.Array:
    """The inverse of `fft2`, complex."""
    return jnp.fft.ifft2(z, axes=(1, 2), norm="ortho")


def _opposite(z: jax.Array) -> jax.Array:
    """[..., H, W, C] with the values of -k at k."""
    return jnp.roll(jnp.flip(z, (-3, -2)), (1, 1), (-3, -2))


def make(
    shape: Shape,
    rng: np.random.Generator,
    kind: str = "lines",
    share: float = 0.25,
    middle: float = 0.08,
) -> FourierMask:
    """share: the fraction of samples acquired. middle: of the lines, central and all acquired."""
    if not 0 < middle <= share <= 1:
        raise ValueError(f"share: needs 0 < middle ({middle}) <= share ({share}) <= 1")
    height, width, channels = shape
    if kind == "lines":
        known = np.tile(_lines(width, rng, share, middle), (height, 1))
    elif kind == "random":
        known = _points(height, width, rng, share)
    else:
        raise ValueError(f"kind: {kind!r} is not one of lines, random")
    return FourierMask(known[..., None].astype(float), channels)


def _lines(width: int, rng: np.random.Generator, share: float, middle: float) -> np.ndarray:
    """bool [width], zero frequency first."""
    frequency = np.abs(np.fft.fftfreq(width))
    order = np.argsort(frequency, kind="stable")
    total, central = max(1, round(share * width)), max(1, round(middle * width))
    known = np.zeros(width, bool)
    known[order[:central]] = True
    known[rng.permutation(order[central:])[: total - central]] = True
    return known


def _points(height: int, width: int, rng: np.random.Generator, share: float) -> np.ndarray:
    """bool [height, width], sampled without replacement with weights (1 + 8 |k|)^-2."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) * 2
    weight = (1 + 8 * frequency.ravel()) ** -2
    count = round(share * height * width)
    chosen = rng.choice(height * width, count, replace=False, p=weight / weight.sum())
    known = np.zeros(height * width, bool)
    known[chosen] = True
    return known.reshape(height, width)
