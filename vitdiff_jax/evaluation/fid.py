"""Fréchet Inception Distance (arXiv:1706.08500): `frechet` of Inception's last pool."""

from vitdiff_jax.evaluation import networks
from vitdiff_jax.evaluation.frechet import Moments, frechet_distance
from vitdiff_jax.evaluation.measuring import Part, Setting


class Metric:
    """FID of the samples to the reference."""

    name = f"fid/{networks.INCEPTION}"
    compares, higher_is_better = True, False

    def __init__(self, setting: Setting):
        self.parts = (Part(setting.shared(networks.inception), "pool", Moments),)

    def result(self, samples, reference) -> dict[str, float]:
        return {"value": frechet_distance(samples[0].gaussian(), reference[0].gaussian())}
