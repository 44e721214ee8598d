"""Magnetic resonance: some samples of the Fourier transform (unitary), complex, the rest zero.

"lines": whole columns of k-space as in fastMRI, all of the middle ones and a random choice of the
others; "random": points, denser towards the middle.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.operators import Shape, register, static
from vitdiff_jax.operators.svd import Svd


@register
class FourierMask:
    """known: 1 for the samples that were taken, [H, W, 1], the frequency zero first."""

    known: jax.Array | np.ndarray
    channels: int = static()
    linear: bool = static(default=True)

    def forward(self, x: jax.Array) -> jax.Array:
        return jnp.asarray(self.known, x.dtype) * waves(x)

    def svd(self) -> Svd:
        """A real image has conjugate values at k and -k: one sample gives both, two their mean.

        With both, each is a measurement with weight one: together the singular value is the same,
        1, since each of the two coefficients is seen once; with one alone it is 1 / sqrt(2).
        """
        known = jnp.asarray(self.known)
        seen = known + _opposite(known)  # 0, 1, 2; the frequency zero and its like are 0 or 2
        values = jnp.repeat(jnp.sqrt(seen / 2), self.channels, -1)

        def measured(y):
            both = known * y + _opposite(known * jnp.conj(y))
            return both / jnp.where(seen > 0, jnp.sqrt(2 * seen), 1)

        return Svd(values, waves, lambda z: unwaves(z).real, measured)


def waves(x: jax.Array) -> jax.Array:
    """The unitary Fourier transform of [B, H, W, C] over H and W."""
    return jnp.fft.fft2(x, axes=(1, 2), norm="ortho")


def unwaves(z: jax.Array) -> jax.Array:
    """Its inverse, complex."""
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
    """share: of the samples that are taken. middle: of the lines, around zero and all taken."""
    if not 0 < middle <= share <= 1:
        raise ValueError(f"share: needs 0 < middle ({middle}) <= share ({share}) <= 1")
    height, width, channels = shape
    if kind == "lines":
        known = np.tile(_lines(width, rng, share, middle), (height, 1))
    elif kind == "random":
        known = _points(height, width, rng, share)
    else:
        raise ValueError(f"kind: {kind!r} is none of lines, random")
    return FourierMask(known[..., None].astype(float), channels)


def _lines(width: int, rng: np.random.Generator, share: float, middle: float) -> np.ndarray:
    """bool [width], the frequency zero first."""
    frequency = np.abs(np.fft.fftfreq(width))
    order = np.argsort(frequency, kind="stable")
    whole, central = max(1, round(share * width)), max(1, round(middle * width))
    known = np.zeros(width, bool)
    known[order[:central]] = True
    known[rng.permutation(order[central:])[: whole - central]] = True
    return known


def _points(height: int, width: int, rng: np.random.Generator, share: float) -> np.ndarray:
    """bool [height, width], drawn without replacement with weight (1 + 8 |k|)^-2."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) * 2
    weight = (1 + 8 * frequency.ravel()) ** -2
    count = round(share * height * width)
    chosen = rng.choice(height * width, count, replace=False, p=weight / weight.sum())
    known = np.zeros(height * width, bool)
    known[chosen] = True
    return known.reshape(height, width)
