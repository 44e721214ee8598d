"""Fréchet distance in pixels: FID's formula without a network, see `frechet`. For tiny images."""

import numpy as np

from vitdiff_jax.evaluation.frechet import Moments, frechet_distance
from vitdiff_jax.evaluation.measuring import Batch, Part, Setting


class Extractor:
    """Gives "pixels" [N, H W C] in [-1, 1]."""

    name = "pixels"

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        return {"pixels": batch.images.reshape(len(batch.images), -1) / 127.5 - 1}


class Metric:
    """Distance of the samples to the reference."""

    name = "fd/pixels"
    compares, higher_is_better = True, False

    def __init__(self, setting: Setting):
        self.parts = (Part(setting.shared(lambda s: Extractor(), "pixels"), "pixels", Moments),)

    def result(self, samples, reference) -> dict[str, float]:
        return {"value": frechet_distance(samples[0].gaussian(), reference[0].gaussian())}
