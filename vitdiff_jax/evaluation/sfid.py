"""Spatial FID (arXiv:2103.03841): FID of a 17x17 feature map of Inception, as in ADM.

The map is the first 7 channels of Mixed_6d (TensorFlow's mixed_6/conv), 2023 features per image.
"""

from vitdiff_jax.evaluation import networks
from vitdiff_jax.evaluation.frechet import FrechetMetric, Moments
from vitdiff_jax.evaluation.metric import Part, Setting


class Metric(FrechetMetric):
    """sFID between samples and reference."""

    name = f"sfid/{networks.INCEPTION}"

    def __init__(self, setting: Setting):
        self.parts = (Part(setting.shared(networks.inception), "spatial", Moments),)
