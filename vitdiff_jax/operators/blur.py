"""Blur: y = kernel * x, for each channel. For deblurring.

"gaussian" and "uniform" kernels are separable; "motion" is a random trajectory of a shaking camera
(after Boracchi and Foi, 2012); "file" is an image or an .npy file of weights. At the border the
image is reflected, as in DPS, or periodic ("circular"), where the Fourier transform is an SVD.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.operators import Operator, Shape, register, static
from vitdiff_jax.operators.fourier import fft2, ifft2
from vitdiff_jax.operators.kronecker import Kronecker
from vitdiff_jax.operators.svd import Svd
from vitdiff_jax.runtime import paths, pictures


@register
class Convolution:
    """kernel [k, k], k odd, with sum one; reflected border."""

    kernel: jax.Array | np.ndarray
    linear: bool = static(default=True)

    def forward(self, x: jax.Array) -> jax.Array:
        kernel = jnp.asarray(self.kernel, x.dtype)[::-1, ::-1]  # XLA computes a cross-correlation
        reach, channels = len(kernel) // 2, x.shape[-1]
        x = jnp.pad(x, [(0, 0), (reach, reach), (reach, reach), (0, 0)], mode="reflect")
        kernel = jnp.tile(kernel[:, :, None, None], (1, 1, 1, channels))
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", feature_group_count=channels,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=jax.lax.Precision.HIGHEST,
        )  # fmt: skip


@register
class Circular:
    """transfer: the Fourier transform of the kernel, complex [H, W, 1]; periodic border."""

    transfer: jax.Array | np.ndarray
    channels: int = static()
    linear: bool = static(default=True)

    def forward(self, x: jax.Array) -> jax.Array:
        return ifft2(jnp.asarray(self.transfer) * fft2(x)).real.astype(x.dtype)

    def svd(self) -> Svd:
        transfer = jnp.asarray(self.transfer)
        values = jnp.repeat(jnp.abs(transfer), self.channels, -1)
        phase = transfer / jnp.maximum(jnp.abs(transfer), 1e-20)
        return Svd(values, fft2, lambda z: ifft2(z).real, lambda y: jnp.conj(phase) * fft2(y))


def make(
    shape: Shape,
    rng: np.random.Generator,
    kind: str = "gaussian",
    size: int = 61,
    std: float = 3.0,
    intensity: float = 0.5,
    border: str = "mirror",
    path: str = "",
) -> Operator:
    """A blur of this kind.

    size: of the kernel in pixels, odd. std: of the Gaussian in pixels. intensity: of the camera
    shake, 0 to 1. border: mirror or circular. path: of the kernel file.
    """
    if kind not in ("gaussian", "uniform", "motion", "file"):
        raise ValueError(f"kind: {kind!r} is not one of gaussian, uniform, motion, file")
    if border not in ("mirror", "circular"):
        raise ValueError(f"border: {border!r} is not one of mirror, circular")
    if kind == "file":
        kernel = read(paths.local_copy(path))
        size = len(kernel)
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size: {size} is not an odd number of pixels")
    if size // 2 >= min(shape[:2]):
        raise ValueError(f"size: a kernel of {size} pixels does not fit {shape[0]}x{shape[1]}")
    if kind in ("gaussian", "uniform"):
        line = _gaussian(size, std) if kind == "gaussian" else np.full(size, 1 / size)
        if border == "mirror":
            eye = np.eye(shape[2], dtype=np.float32)
            return Kronecker(_mirrored(shape[0], line), _mirrored(shape[1], line), eye)
        kernel = np.outer(line, line)
    elif kind == "motion":
        kernel = motion(size, rng, intensity)
    if border == "mirror":
        return Convolution(kernel.astype(np.float32))
    return Circular(_transfer(kernel, shape), shape[2])


def _gaussian(size: int, std: float) -> np.ndarray:
    if std <= 0:
        raise ValueError(f"std: {std} is not positive")
    line = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * std**2))
    return line / line.sum()


def _mirrored(size: int, line: np.ndarray) -> np.ndarray:
    """float32 [size, size]: a blur along one axis with a reflected border."""
    reach, matrix = len(line) // 2, np.zeros((size, size))
    places = np.pad(np.arange(size), reach, mode="reflect")
    for i in range(size):
        np.add.at(matrix[i], places[i : i + len(line)], line[::-1])
    return matrix.astype(np.float32)


def _transfer(kernel: np.ndarray, shape: Shape) -> np.ndarray:
    """complex [H, W, 1]: the Fourier transform of a kernel centred at the origin."""
    whole, reach = np.zeros(shape[:2]), len(kernel) // 2
    places = np.arange(-reach, reach + 1)
    np.add.at(whole, (places[:, None] % shape[0], places[None] % shape[1]), kernel)
    return np.fft.fft2(whole)[..., None]


def motion(size: int, rng: np.random.Generator, intensity: float) -> np.ndarray:
    """float64 [size, size]: a random, centred trajectory with bilinear weights and sum one."""
    if not 0 <= intensity <= 1:
        raise ValueError(f"intensity: {intensity} is not in [0, 1]")
    heading, place, path = np.exp(2j * np.pi * rng.random()), 0j, []
    for _ in range(20 * size):
        if rng.random() < 0.1 * intensity:  # a jerk
            heading *= np.exp(1j * rng.uniform(-np.pi, np.pi) * intensity)
        heading *= np.exp(0.3j * intensity * rng.standard_normal())
        place += heading
        path.append(place)
    x, y = np.real(path), np.imag(path)
    x, y = (line - (line.min() + line.max()) / 2 for line in (x, y))
    scale = 0.7 * (size // 2) / max(np.abs(x).max(), np.abs(y).max())
    x, y = x * scale + size // 2, y * scale + size // 2
    kernel = np.zeros((size + 1, size + 1))
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    for across in (0, 1):
        for down in (0, 1):
            weight = np.abs(1 - across - (x - left)) * np.abs(1 - down - (y - top))
            np.add.at(kernel, (top + down, left + across), weight)
    return kernel[:size, :size] / kernel[:size, :size].sum()


def read(path: pathlib.Path) -> np.ndarray:
    """float64 [k, k] from a grey image or an .npy file, normalised to sum one.

    Raises ValueError for anything else.
    """
    try:
        if path.suffix == ".npy":
            kernel = np.load(path, allow_pickle=False).astype(np.float64)
        else:
            data = path.read_bytes()
            if (count := pictures.count(data)) > 1:
                raise ValueError(f"holds {count} frames or pages; give the one that is the kernel")
            kernel = pictures.read(data, floats=True).luminance()
    except (OSError, ValueError) as error:
        raise ValueError(f"path: {path}: not a readable kernel: {error}") from error
    square = kernel.ndim == 2 and kernel.shape[0] == kernel.shape[1]
    if not square or not np.isfinite(kernel).all() or kernel.sum() <= 0:
        raise ValueError(f"path: {path}: not a square kernel with a positive sum")
    return kernel / kernel.sum()
