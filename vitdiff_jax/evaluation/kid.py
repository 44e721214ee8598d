"""Kernel Inception Distance (arXiv:1801.01401): squared MMD of Inception's final pooling layer.

Kernel (x . y / D + 1)^3, unbiased, the mean over 100 random subsets of 1000 (seed 2020), as in
torch-fidelity. May be slightly negative.
"""

import numpy as np

from vitdiff_jax.evaluation import networks
from vitdiff_jax.evaluation.metric import Part, Setting, Vectors

SUBSETS, SUBSET, SEED = 100, 1000, 2020


def kernel_distance(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """(mean, standard deviation) over subsets of features [N, D] and [M, D].

    Subsets are smaller where there are fewer than 1000 images.
    """
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"{first.shape[1]} and {second.shape[1]} features per image: different networks"
        )
    size = min(SUBSET, len(first), len(second))
    random = np.random.RandomState(SEED)
    if size < 2:
        raise ValueError("kid needs at least 2 images")
    found = []
    for _ in range(SUBSETS):
        a = first[random.choice(len(first), size, replace=False)].astype(np.float64)
        b = second[random.choice(len(second), size, replace=False)].astype(np.float64)
        own = sum(k.sum() - np.trace(k) for k in (_kernel(a, a), _kernel(b, b)))
        found.append(own / (size * (size - 1)) - 2 * _kernel(a, b).mean())
    return float(np.mean(found)), float(np.std(found))


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    k = a @ b.T / a.shape[1] + 1
    return k * k * k  # twice as fast as ** 3


class Metric:
    """KID between samples and reference."""

    name = f"kid/{networks.INCEPTION}"
    compares, higher_is_better = True, False

    def __init__(self, setting: Setting):
        self.parts = (Part(setting.shared(networks.inception), "pool", Vectors),)

    def result(self, samples, reference) -> dict[str, float]:
        value, std = kernel_distance(samples[0].vectors, reference[0].vectors)
        return {"value": value, "std": std}
