"""Peak signal-to-noise ratio of pairs: 10 log10(255^2 / MSE), the MSE over all channels."""

import numpy as np

from vitdiff_jax.evaluation.metric import FiniteMean, PairMetric


def psnr(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """PSNR in decibels [N] of images and ground truth uint8 [N, H, W, C]; infinite if equal."""
    squares = (images.astype(np.float64) - truth.astype(np.float64)) ** 2
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / squares.mean((1, 2, 3)))


class Metric(PairMetric):
    """The mean over images, as in the literature; "perfect": how many equal images it leaves out.

    One of them would make the mean infinite; there is no "perfect" where there are none.
    """

    name = "psnr/uint8"
    higher_is_better = True
    values = staticmethod(psnr)
    kind = FiniteMean

    def result(self, samples, reference):
        (mean,) = samples
        perfect = {"perfect": mean.infinite} if mean.infinite else {}
        return super().result(samples, reference) | perfect
