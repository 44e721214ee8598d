"""LPIPS of pairs (arXiv:1801.03924) with VGG-16 ("value") and AlexNet; see `models.lpips`."""

from vitdiff_jax.evaluation import networks
from vitdiff_jax.evaluation.metric import Mean, Part, Setting


class Metric:
    """The means over images; 0 for identical pairs."""

    name = "lpips/vgg16"
    compares, paired, higher_is_better = False, True, False

    def __init__(self, setting: Setting):
        network = setting.shared(networks.lpips)
        self.parts = (Part(network, "vgg16", Mean), Part(network, "alexnet", Mean))

    def result(self, samples, reference) -> dict[str, float]:
        vgg16, alexnet = samples
        return {"value": vgg16.mean, "standard_error": vgg16.error, "alexnet": alexnet.mean}
