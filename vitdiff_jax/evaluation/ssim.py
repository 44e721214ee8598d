"""Structural similarity of pairs (Wang et al., 2004): Gaussian window of 11 pixels, sigma 1.5.

    (2 m1 m2 + c1) (2 s12 + c2) / ((m1^2 + m2^2 + c1) (s1^2 + s2^2 + c2))

with c1 = (0.01 * 255)^2, c2 = (0.03 * 255)^2 and population variances, averaged over channels and
over the positions where the whole window fits.
"""

import numpy as np

from vitdiff_jax.evaluation.metric import PairMetric

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ssim(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """SSIM [N] of images and ground truth uint8 [N, H, W, C], of at least 11 pixels."""
    if min(images.shape[1:3]) < WINDOW:
        raise ValueError(
            f"ssim: images of {images.shape[1]}x{images.shape[2]} are smaller than the window of"
            f" {WINDOW} pixels"
        )
    a, b = images.astype(np.float64), truth.astype(np.float64)
    mean1, mean2 = _blur(a), _blur(b)
    var1, var2 = _blur(a * a) - mean1**2, _blur(b * b) - mean2**2
    both = _blur(a * b) - mean1 * mean2
    top = (2 * mean1 * mean2 + C1) * (2 * both + C2)
    bottom = (mean1**2 + mean2**2 + C1) * (var1 + var2 + C2)
    return (top / bottom).mean((1, 2, 3))


def _blur(x: np.ndarray) -> np.ndarray:
    """The Gaussian mean around each position where the window fits: [N, H - 10, W - 10, C]."""
    weights = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    weights /= weights.sum()
    for axis in (1, 2):
        room = x.shape[axis] - WINDOW + 1
        x = sum(w * np.take(x, range(i, i + room), axis) for i, w in enumerate(weights))  # type: ignore[assignment]
    return x


class Metric(PairMetric):
    """The mean over images."""

    name = "ssim/gaussian-11"
    higher_is_better = True
    values = staticmethod(ssim)
