"""Fréchet distance in pixels: FID's formula without a network, see `frechet`. For tiny images."""

import numpy as np

from vitdiff_jax.data.pipeline import Dataset, stacked
from vitdiff_jax.evaluation.frechet import Moments, frechet_distance


class Metric:
    """Distance of the samples to the held-out split, beside that of the training split."""

    name = "fd/pixels"

    def __init__(self, dataset: Dataset):
        """Fit the references."""
        size = int(np.prod(dataset.shape))
        self.heldout = Moments(size).update(_vectors(stacked(dataset.heldout)["image"])).gaussian()
        train = Moments(size).update(_vectors(stacked(dataset.train)["image"])).gaussian()
        self.floor = frechet_distance(train, self.heldout)
        self.samples = Moments(size)

    def update(self, images: np.ndarray, cond: dict[str, np.ndarray]) -> None:
        """Add samples uint8 [N, H, W, C]."""
        self.samples.update(_vectors(images))

    def result(self) -> dict[str, float]:
        """The distance, and its floor: the training split's own distance to the held-out one."""
        return {
            "value": frechet_distance(self.samples.gaussian(), self.heldout),
            "floor": self.floor,
        }


def _vectors(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 127.5 - 1
