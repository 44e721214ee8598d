"""Downsampling by block averages or antialiased bicubic resizing. For super-resolution.

"bicubic" is Keys' cubic with a = -0.5, stretched by the factor and normalised within the image: as
in Pillow, and as in DPS except at the border.
"""

import numpy as np

from vitdiff_jax.operators import Shape
from vitdiff_jax.operators.kronecker import Kronecker


def make(
    shape: Shape, rng: np.random.Generator, factor: int = 4, kind: str = "bicubic"
) -> Kronecker:
    """[H, W, C] to [H / factor, W / factor, C]; kind: average or bicubic."""
    if kind not in ("average", "bicubic"):
        raise ValueError(f"kind: {kind!r} is not one of average, bicubic")
    for size in shape[:2]:
        if factor < 1 or size % factor:
            raise ValueError(f"factor: {factor} does not divide {shape[0]}x{shape[1]} pixels")
    matrix = average if kind == "average" else bicubic
    return Kronecker(
        matrix(shape[0], factor), matrix(shape[1], factor), np.eye(shape[2], dtype=np.float32)
    )


def average(size: int, factor: int) -> np.ndarray:
    """float32 [size / factor, size]."""
    return np.kron(np.eye(size // factor), np.full((1, factor), 1 / factor)).astype(np.float32)


def bicubic(size: int, factor: int) -> np.ndarray:
    """float32 [size / factor, size]."""
    centres = (np.arange(size // factor) + 0.5) * factor
    away = np.abs(np.arange(size) + 0.5 - centres[:, None]) / factor
    near = 1.5 * away**3 - 2.5 * away**2 + 1
    far = -0.5 * away**3 + 2.5 * away**2 - 4 * away + 2
    weights = np.where(away < 1, near, np.where(away < 2, far, 0))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
