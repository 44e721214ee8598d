"""Improved precision and recall (arXiv:1904.06991) of Inception's last pool, k = 3 as in ADM.

Precision: the share of samples inside the reference, the union of balls around its vectors that
reach to the third neighbour. Recall: the share of the reference inside that of the samples.
"""

import numpy as np

from vitdiff_jax.evaluation import networks
from vitdiff_jax.evaluation.measuring import Part, Setting, Vectors

NEIGHBOUR = 3
ROWS, COLUMNS = 250, 5000  # so that 50,000 vectors on both sides take 0.3 GB beside themselves


def squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """float64 [N, M] of vectors [N, D] and [M, D]."""
    first = first.astype(np.float64)
    found = np.empty((len(first), len(second)))
    for i in range(0, len(second), COLUMNS):
        others = second[i : i + COLUMNS].astype(np.float64)
        found[:, i : i + COLUMNS] = (others**2).sum(1) - 2 * first @ others.T
    found += (first**2).sum(1)[:, None]
    return np.maximum(found, 0, out=found)


def radii(vectors: np.ndarray) -> np.ndarray:
    """The squared distance [N] of each vector to its third neighbour."""
    found = []
    for rows in _pieces(vectors):
        distances = squared_distances(rows, vectors)
        distances.partition(NEIGHBOUR, axis=1)  # the nearest is the vector itself
        found.append(distances[:, NEIGHBOUR].copy())
    return np.concatenate(found)


def share_inside(vectors: np.ndarray, others: np.ndarray, reach: np.ndarray) -> float:
    """How many of the vectors lie in a ball around one of the others."""
    inside = [(squared_distances(rows, others) <= reach).any(1).sum() for rows in _pieces(vectors)]
    return float(sum(inside) / len(vectors))


def _pieces(vectors: np.ndarray):
    return (vectors[i : i + ROWS] for i in range(0, len(vectors), ROWS))


class Metric:
    """Precision ("value") and recall of the samples."""

    name = f"precision_recall/{networks.INCEPTION}"
    compares, higher_is_better = True, True

    def __init__(self, setting: Setting):
        self.parts = (Part(setting.shared(networks.inception), "pool", Vectors),)

    def result(self, samples, reference) -> dict[str, float]:
        own, real = samples[0].vectors, reference[0].vectors
        if own.shape[1] != real.shape[1]:
            raise ValueError(f"vectors of {own.shape[1]} and {real.shape[1]} numbers: two networks")
        if min(len(own), len(real)) <= NEIGHBOUR:
            raise ValueError(f"{self.name} needs more than {NEIGHBOUR} images")
        return {
            "value": share_inside(own, real, radii(real)),
            "recall": share_inside(real, own, radii(own)),
        }
