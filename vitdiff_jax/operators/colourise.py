"""Grey images: y is the mean of the channels, as in DPS, DDRM and DDNM. For colourisation."""

import numpy as np

from vitdiff_jax.operators import Shape
from vitdiff_jax.operators.kronecker import Kronecker


def make(shape: Shape, rng: np.random.Generator) -> Kronecker:
    """[H, W, C] to [H, W, 1]."""
    height, width, channels = shape
    eye = np.eye(max(height, width), dtype=np.float32)
    mean = np.full((1, channels), 1 / channels, np.float32)
    return Kronecker(eye[:height, :height], eye[:width, :width], mean)
