"""Peak signal-to-noise ratio of pairs: 10 log10(255^2 / mean squared error), over all channels."""

import numpy as np

from vitdiff_jax.evaluation.measuring import Mean, OfPairs, Part, Setting


def psnr(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Decibels [N] of uint8 [N, H, W, C] and the true ones; infinite where they are equal."""
    squares = (images.astype(np.float64) - truth.astype(np.float64)) ** 2
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / squares.mean((1, 2, 3)))


class Metric:
    """The mean over images, as papers have it."""

    name = "psnr/uint8"
    compares, higher_is_better = False, True

    def __init__(self, setting: Setting):
        self.parts = (Part(setting.shared(lambda _: OfPairs("psnr", psnr), "psnr"), "psnr", Mean),)

    def result(self, samples, reference) -> dict[str, float]:
        return {"value": samples[0].mean, "standard_error": samples[0].error}
