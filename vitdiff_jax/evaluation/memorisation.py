"""Memorisation: compare samples with their nearest training images.

A sample counts as memorised if its nearest training image is three times closer than the second
nearest, in pixel space (Yoon et al., 2023; arXiv:2310.02664). Mirror images count as the same.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vitdiff_jax.data import gather
from vitdiff_jax.data.pipeline import Source
from vitdiff_jax.interop.sheets import Sheet

RATIO = 1 / 3
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Nearest:
    """For each of N samples the nearest training image, and two root-mean-square distances [N].

    Distances to the nearest and second nearest image, in grey levels (0 to 255).
    """

    images: np.ndarray
    first: np.ndarray
    second: np.ndarray

    @property
    def memorised(self) -> np.ndarray:
        """Which samples are memorised [N]."""
        return self.first < RATIO * self.second


def compare(samples: np.ndarray, source: Source) -> Nearest:
    """Search `source` for the images nearest to the samples, uint8 [N, H, W, C].

    The search is distributed over the processes.
    """
    processes, count = jax.process_count(), len(samples)
    mine = np.array_split(np.arange(len(source)), processes)[jax.process_index()]
    found = gather.allgather(_search(samples, source, mine), processes * count)
    images, nearest, second = (a.reshape(processes, count, *a.shape[1:]) for a in found)
    where = nearest.argmin(0)
    both = np.sort(np.concatenate([nearest, second]), 0)  # [2 processes, N]
    first, second = np.sqrt(np.maximum(both[:2], 0) / np.prod(samples.shape[1:]))
    return Nearest(images[where, np.arange(count)], first, second)


def _search(
    samples: np.ndarray, source: Source, which: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nearest images [N, H, W, C], and the two smallest squared distances [N] each."""
    count = len(samples)
    flat = samples.reshape(count, -1).astype(np.float32)
    mirrored = samples[:, :, ::-1].reshape(count, -1).astype(np.float32)
    best = np.full((count, 2), np.inf)
    found = np.zeros_like(samples)
    for start in range(0, len(which), BATCH):
        part = np.stack([source.example(int(i))["image"] for i in which[start : start + BATCH]])
        distance = np.minimum(_squares(flat, part), _squares(mirrored, part))  # [N, P]
        nearest = distance.argmin(1)
        better = distance[np.arange(count), nearest] < best[:, 0]
        found[better] = part[nearest[better]]
        best = np.sort(np.concatenate([best, distance], 1), 1)[:, :2]
    return found, best[:, 0], best[:, 1]


def _squares(samples: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Squared distances [N, P] of vectors [N, D] to images uint8 [P, H, W, C]."""
    vectors = images.reshape(len(images), -1).astype(np.float32)
    products = samples @ vectors.T
    return (samples**2).sum(1, keepdims=True) + (vectors**2).sum(1) - 2 * products


def sheet(samples: np.ndarray, nearest: Nearest, names: Sequence[str] = (), **about: Any) -> Sheet:
    """Pairs side by side, sample left and training image right, the likeliest copies first.

    names: the class of each sample.
    """
    order = np.argsort(nearest.first / np.maximum(nearest.second, 1e-6))
    pairs = np.stack([samples, nearest.images], 1)[order]  # [N, 2, H, W, C]
    columns = max(1, int(np.ceil(np.sqrt(len(pairs) / 2))))
    return Sheet("nearest", pairs, columns, [names[int(i)] for i in order] if names else (), about)


def summary(nearest: Nearest) -> str:
    """A one-line summary for the log."""
    copies = int(nearest.memorised.sum())
    return (
        f"{copies} of {len(nearest.first)} samples look like copies of a training image"
        f" (nearest on average {nearest.first.mean():.1f} grey levels away)"
    )
