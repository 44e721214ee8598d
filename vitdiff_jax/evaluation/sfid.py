"""Spatial FID (arXiv:2103.03841): FID's formula on a 17x17 map of Inception, as ADM computes it.

The map is the first 7 channels of Mixed_6d (TensorFlow's mixed_6/conv), 2023 numbers an image.
"""

from vitdiff_jax.evaluation import networks
from vitdiff_jax.evaluation.frechet import Moments, frechet_distance
from vitdiff_jax.evaluation.measuring import Part, Setting


class Metric:
    """sFID of the samples to the reference."""

    name = f"sfid/{networks.INCEPTION}"
    compares, higher_is_better = True, False

    def __init__(self, setting: Setting):
        self.parts = (Part(setting.shared(networks.inception), "spatial", Moments),)

    def result(self, samples, reference) -> dict[str, float]:
        return {"value": frechet_distance(samples[0].gaussian(), reference[0].gaussian())}
