"""How often class-conditional samples are what was asked for, judged by a classifier.

The classifier is scikit-learn's SVC with a Gaussian kernel (gamma 0.016 at 64 pixels, C 10) on
pixels in [-1, 1], trained on the real training split. Its accuracy on the reference stands beside
the result: with held-out images that is the ceiling. For small images: training is quadratic in
their number.
"""

import zlib
from typing import Any

import numpy as np

from vitdiff_jax.data.pipeline import stacked
from vitdiff_jax.evaluation.measuring import Batch, Mean, Part, Setting


class Extractor:
    """Gives "right" [N]: whether an image is read as the class it was drawn for."""

    def __init__(self, setting: Setting):
        dataset = setting.dataset
        if dataset.classes is None:
            raise ValueError("class_accuracy needs a data set with classes")
        from sklearn.svm import SVC  # seconds to import: only where it is used

        train = stacked(dataset.train)
        gamma: Any = 0.016 * 64 / np.prod(dataset.shape)
        self.classifier = SVC(gamma=gamma, C=10).fit(_vectors(train["image"]), train["label"])
        self.name = f"svc-{zlib.crc32(train['image'].tobytes()):08x}"

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        if "label" not in batch.cond:
            raise ValueError("class_accuracy needs to know what the images were drawn for")
        return {"right": self.classifier.predict(_vectors(batch.images)) == batch.cond["label"]}


class Metric:
    """Share of samples labelled as the class they were drawn for."""

    name = "class_accuracy/svc"
    compares, higher_is_better = True, True

    def __init__(self, setting: Setting):
        self.parts = (Part(setting.shared(Extractor), "right", Mean),)

    def result(self, samples, reference) -> dict[str, float]:
        return {"value": samples[0].mean, "reference": reference[0].mean}


def _vectors(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 127.5 - 1
