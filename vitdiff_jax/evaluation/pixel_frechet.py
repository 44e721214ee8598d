"""Fréchet distance of raw pixels: FID's formula without a network, for tiny images."""

import numpy as np

from vitdiff_jax.evaluation.features import Features
from vitdiff_jax.evaluation.frechet import FrechetMetric, Moments
from vitdiff_jax.evaluation.metric import Batch, Part, Setting


class Extractor:
    """Gives "pixels" [N, H W C] in [-1, 1]."""

    name = "pixels"

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        return {"pixels": batch.images.reshape(len(batch.images), -1) / 127.5 - 1}


def features(setting: Setting) -> Features:
    """The pixels themselves, as differentiable features."""
    return Features({}, lambda params, images: images.reshape(len(images), -1))


class Metric(FrechetMetric):
    """The distance between samples and reference."""

    name = "fd/pixels"

    def __init__(self, setting: Setting):
        self.parts = (Part(setting.shared(lambda s: Extractor(), "pixels"), "pixels", Moments),)

    def check_sizes(self, own: tuple[int, ...], real: tuple[int, ...]) -> None:
        """ValueError unless samples and real images are of one shape [H, W, C]."""
        if own != real:
            raise ValueError(f"{self.name}: samples have shape {own}, real images {real}")
