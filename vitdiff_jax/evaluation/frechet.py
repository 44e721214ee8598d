"""The Fréchet distance between Gaussians fitted to features; FID for those of Inception.

    |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))

Means and covariances (ddof 1) are float64. The trace of the root is computed from the eigenvalues
of the symmetric C1^(1/2) C2 C1^(1/2), which avoids imaginary parts.
"""

import numpy as np

Gaussian = tuple[np.ndarray, np.ndarray]


class Moments:
    """Mean and covariance of vectors, accumulated in float64 without storing the vectors."""

    def __init__(self, count: int = 0):
        self.count, self.sum, self.outer = 0, np.zeros(0), np.zeros((0, 0))

    def update(self, rows: np.ndarray) -> "Moments":
        """Add vectors [N, D]; returns itself."""
        rows = rows.astype(np.float64)
        if not self.count:
            self.sum, self.outer = np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2)
        self.count += len(rows)
        self.sum += rows.sum(0)
        self.outer += rows.T @ rows
        return self

    def arrays(self):
        return {"count": np.array(self.count), "sum": self.sum, "outer": self.outer}

    def load(self, arrays):
        self.count, self.sum, self.outer = int(arrays["count"]), arrays["sum"], arrays["outer"]

    def gaussian(self) -> Gaussian:
        """(mean [D], covariance [D, D]), of at least two vectors."""
        mean = self.sum / self.count
        return mean, (self.outer - self.count * np.outer(mean, mean)) / (self.count - 1)


class FrechetMetric:
    """Base of metrics that are the Fréchet distance of one part that accumulates `Moments`."""

    compares, higher_is_better = True, False

    def result(self, samples, reference) -> dict[str, float]:
        return {"value": frechet_distance(samples[0].gaussian(), reference[0].gaussian())}


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """The squared 2-Wasserstein distance of two Gaussians (mean [D], covariance [D, D])."""
    (mean1, cov1), (mean2, cov2) = first, second
    if mean1.shape != mean2.shape:
        raise ValueError(
            f"the samples have {len(mean1)} features per image, the reference {len(mean2)}:"
            " they differ in image size or network"
        )
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov2 @ root), 0)).sum()
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * cross)
