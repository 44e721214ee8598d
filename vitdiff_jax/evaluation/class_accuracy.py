"""Class accuracy: how often a classifier assigns class-conditional samples to their class.

The classifier is scikit-learn's SVC with an RBF kernel (gamma 0.016 at 64 pixels, C 10) on pixels
in [-1, 1], trained on the training split. Its accuracy on the reference is reported too; on
held-out images it is the upper bound. For small data sets, as training is quadratic in their size.
"""

import zlib
from typing import Any

import numpy as np

from vitdiff_jax.data.pipeline import stacked
from vitdiff_jax.evaluation.metric import Batch, Mean, Part, Setting


class Extractor:
    """Gives "correct" [N]: whether an image is classified as its class."""

    def __init__(self, setting: Setting):
        dataset = setting.dataset
        if dataset.classes is None:
            raise ValueError("class_accuracy needs a data set with classes")
        from sklearn.svm import SVC  # takes seconds to import

        train = stacked(dataset.train)
        gamma: Any = 0.016 * 64 / np.prod(dataset.shape)
        self.classifier = SVC(gamma=gamma, C=10).fit(_vectors(train["image"]), train["label"])
        self.name = f"svc-{zlib.crc32(train['image'].tobytes()):08x}"

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        if "label" not in batch.cond:
            raise ValueError("class_accuracy needs the class labels of the images")
        found = self.classifier.predict(_vectors(batch.images))
        return {"correct": found == batch.cond["label"]}


class Metric:
    """Fraction of samples classified as their class."""

    name = "class_accuracy/svc"
    compares, higher_is_better = True, True

    def __init__(self, setting: Setting):
        self.parts = (Part(setting.shared(Extractor), "correct", Mean),)

    def result(self, samples, reference) -> dict[str, float]:
        return {"value": samples[0].mean, "reference": reference[0].mean}


def _vectors(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 127.5 - 1
