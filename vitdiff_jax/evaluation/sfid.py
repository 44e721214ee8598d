"""Spatial FID (arXiv:2103.03841): FID's formula on a 17x17 map of Inception, as ADM computes it.

The map is the first 7 channels of Mixed_6d (TensorFlow's mixed_6/conv), 2023 numbers an image.
"""

from vitdiff_jax.evaluation import networks
from vitdiff_jax.evaluation.frechet import FrechetMetric, Moments
from vitdiff_jax.evaluation.measuring import Part, Setting


class Metric(FrechetMetric):
    """sFID of the samples to the reference."""

    name = f"sfid/{networks.INCEPTION}"

    def __init__(self, setting: Setting):
        self.parts = (Part(setting.shared(networks.inception), "spatial", Moments),)
