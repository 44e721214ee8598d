"""Does the model repeat its training images? Each sample beside the nearest one.

A sample counts as memorised where it is three times nearer to one training image than to the
next one, in pixels (Yoon et al., 2023; arXiv:2310.02664). Mirrored images count as the same.
"""

import dataclasses

import numpy as np

from vitdiff_jax.data.pipeline import Source
from vitdiff_jax.interop.images import grid

RATIO = 1 / 3
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Nearest:
    """For each of N samples: the nearest training image, and two root-mean-square distances [N].

    Distances are in grey levels (0 to 255): to the nearest and to the second nearest image.
    """

    images: np.ndarray
    first: np.ndarray
    second: np.ndarray

    @property
    def memorised(self) -> np.ndarray:
        """Which samples are copies [N]."""
        return self.first < RATIO * self.second


def compare(samples: np.ndarray, source: Source) -> Nearest:
    """Search all of `source` for the images nearest to samples uint8 [N, H, W, C]."""
    count = len(samples)
    flat = samples.reshape(count, -1).astype(np.float32)
    mirrored = samples[:, :, ::-1].reshape(count, -1).astype(np.float32)
    best = np.full((count, 2), np.inf)
    found = np.zeros_like(samples)
    for start in range(0, len(source), BATCH):
        part = np.stack(
            [source.example(i)["image"] for i in range(start, min(start + BATCH, len(source)))]
        )
        distance = np.minimum(_squares(flat, part), _squares(mirrored, part))  # [N, P]
        nearest = distance.argmin(1)
        better = distance[np.arange(count), nearest] < best[:, 0]
        found[better] = part[nearest[better]]
        best = np.sort(np.concatenate([best, distance], 1), 1)[:, :2]
    first, second = np.sqrt(np.maximum(best, 0) / flat.shape[1]).T
    return Nearest(found, first, second)


def _squares(samples: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Squared distances [N, P] of vectors [N, D] to images uint8 [P, H, W, C]."""
    vectors = images.reshape(len(images), -1).astype(np.float32)
    products = samples @ vectors.T
    return (samples**2).sum(1, keepdims=True) + (vectors**2).sum(1) - 2 * products


def picture(samples: np.ndarray, nearest: Nearest) -> np.ndarray:
    """Pairs side by side, sample left and training image right, the likeliest copies first."""
    order = np.argsort(nearest.first / np.maximum(nearest.second, 1e-6))
    pairs = np.concatenate([samples[order], nearest.images[order]], 2)  # [N, H, 2W, C]
    return grid(pairs, max(1, int(np.ceil(np.sqrt(len(pairs) / 2)))))


def verdict(nearest: Nearest) -> str:
    """One line for a person."""
    copies = int(nearest.memorised.sum())
    return (
        f"{copies} of {len(nearest.first)} samples look like copies of a training image"
        f" (nearest on average {nearest.first.mean():.1f} grey levels away)"
    )
