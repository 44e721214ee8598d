"""Fréchet distance in pixels: FID's formula without a network, see `frechet`. For tiny images."""

import numpy as np

from vitdiff_jax.evaluation.frechet import FrechetMetric, Moments
from vitdiff_jax.evaluation.measuring import Batch, Part, Setting


class Extractor:
    """Gives "pixels" [N, H W C] in [-1, 1]."""

    name = "pixels"

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        return {"pixels": batch.images.reshape(len(batch.images), -1) / 127.5 - 1}


class Metric(FrechetMetric):
    """Distance of the samples to the reference."""

    name = "fd/pixels"

    def __init__(self, setting: Setting):
        self.parts = (Part(setting.shared(lambda s: Extractor(), "pixels"), "pixels", Moments),)
