"""FDr: Fréchet distances relative to those of real images, averaged over feature spaces.

    mean over spaces of FD(samples, reference) / FD(held-out images, training images)

as in arXiv:2604.28190, where six networks judge models that were trained on the distance of one.
Here: Inception and VGG-16, or for images below 64 pixels the pixels and, with classes, the
classifier. 1 is what real images have; distances of few images are biased upwards, so compare as
many samples as there are held-out images.
"""

from collections.abc import Sequence

import numpy as np

from vitdiff_jax.data import gather
from vitdiff_jax.data.pipeline import Source
from vitdiff_jax.evaluation import classifier, fd_vgg16, fid, pixel_frechet
from vitdiff_jax.evaluation.frechet import frechet_distance
from vitdiff_jax.evaluation.metric import Batch, Measured, Setting

LARGE, MOST, BATCH = 64, 10_000, 128
"""Pixels from which on images are large; real images of a split, at most; images per call."""


class Metric:
    """The mean ratio ("value") and that of each space."""

    name = "fdr"
    compares, higher_is_better = True, False

    def __init__(self, setting: Setting):
        self.setting, dataset = setting, setting.dataset
        if min(dataset.shape[:2]) >= LARGE:
            spaces = {"inception": fid, "vgg16": fd_vgg16}
        else:
            spaces = {"classifier": classifier} if dataset.classes else {}
            spaces |= {"pixels": pixel_frechet}
        self.spaces = [*spaces]
        self.name = f"fdr/{'+'.join(spaces)}"
        self.parts = tuple(
            setting.shared(space.Metric, space).parts[0] for space in spaces.values()
        )

    def result(self, samples, reference) -> dict[str, float]:
        """Needs the data set, for the distances of its real images."""
        real = self.setting.shared(lambda setting: self._real(), self.name)
        ratios = {
            space: frechet_distance(a.gaussian(), b.gaussian()) / distance
            for space, a, b, distance in zip(self.spaces, samples, reference, real, strict=True)
        }
        return {"value": float(np.mean([*ratios.values()])), **ratios}

    def _real(self) -> list[float]:
        """The distance between held-out and training images in each space."""
        dataset = self.setting.dataset
        splits = [self._measured(split) for split in (dataset.heldout, dataset.train)]
        return [
            frechet_distance(*(split.found[part].gaussian() for split in splits))
            for part in self.parts
        ]

    def _measured(self, source: Source) -> Measured:
        which: Sequence[int] = range(len(source))
        if len(which) > MOST:
            which = sorted(np.random.default_rng(0).choice(len(which), MOST, replace=False))
        measured = Measured(self.parts, len(which))
        for part in gather.read(source, which, BATCH):
            measured.update(Batch(part.pop("image"), part))
        return measured
