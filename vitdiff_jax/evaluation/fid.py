"""Fréchet Inception Distance (arXiv:1706.08500): `frechet` of Inception's final pooling layer."""

from vitdiff_jax.evaluation import networks
from vitdiff_jax.evaluation.features import Features
from vitdiff_jax.evaluation.frechet import FrechetMetric, Moments
from vitdiff_jax.evaluation.metric import Part, Setting


def features(setting: Setting) -> Features:
    """Inception's, differentiable."""
    return networks.differentiable(setting.shared(networks.inception), "pool")


class Metric(FrechetMetric):
    """FID between samples and reference."""

    name = f"fid/{networks.INCEPTION}"

    def __init__(self, setting: Setting):
        self.parts = (Part(setting.shared(networks.inception), "pool", Moments),)
