"""The Fréchet distance between Gaussians fitted to vectors, which FID is of Inception's features.

    |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))

Means and covariances (ddof 1) are float64. The root's trace comes from the eigenvalues of
C1^(1/2) C2 C1^(1/2), which is symmetric: no imaginary parts.
"""

import numpy as np


class Moments:
    """Mean and covariance of vectors, accumulated in float64 without keeping the vectors."""

    def __init__(self, size: int):
        self.count, self.sum, self.outer = 0, np.zeros(size), np.zeros((size, size))

    def update(self, vectors: np.ndarray) -> "Moments":
        """Add vectors [N, size]; returns itself."""
        vectors = vectors.astype(np.float64)
        self.count += len(vectors)
        self.sum += vectors.sum(0)
        self.outer += vectors.T @ vectors
        return self

    def gaussian(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean, covariance)."""
        mean = self.sum / self.count
        return mean, (self.outer - self.count * np.outer(mean, mean)) / (self.count - 1)


def frechet_distance(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> float:
    """The squared 2-Wasserstein distance of two Gaussians (mean [D], covariance [D, D])."""
    (mean1, cov1), (mean2, cov2) = first, second
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov2 @ root), 0)).sum()
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * cross)
