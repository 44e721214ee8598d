"""How often class-conditional samples are what was asked for, judged by a classifier.

The classifier is scikit-learn's SVC with a Gaussian kernel (gamma 0.016 at 64 pixels, C 10) on
pixels in [-1, 1], trained on the real training split. Its accuracy on the held-out real split is
the ceiling and stands beside the result. For small images: training is quadratic in their number.
"""

from typing import Any

import numpy as np

from vitdiff_jax.data.pipeline import Dataset, stacked


class Metric:
    """Share of samples labelled as the class they were drawn for."""

    name = "class_accuracy/svc"

    def __init__(self, dataset: Dataset):
        """Train the classifier. Needs a data set with classes."""
        if dataset.classes is None:
            raise ValueError("class_accuracy needs a data set with classes")
        from sklearn.svm import SVC  # seconds to import: only where it is used

        train, heldout = stacked(dataset.train), stacked(dataset.heldout)
        gamma: Any = 0.016 * 64 / np.prod(dataset.shape)
        self.classifier = SVC(gamma=gamma, C=10).fit(_vectors(train["image"]), train["label"])
        self.heldout = self.classifier.score(_vectors(heldout["image"]), heldout["label"])
        self.right = self.count = 0

    def update(self, images: np.ndarray, cond: dict[str, np.ndarray]) -> None:
        """Count samples uint8 [N, H, W, C] drawn for the labels [N] in `cond`."""
        self.right += int((self.classifier.predict(_vectors(images)) == cond["label"]).sum())
        self.count += len(images)

    def result(self) -> dict[str, float]:
        """The accuracy on the samples, and on held-out real images."""
        return {"value": self.right / self.count, "heldout": self.heldout}


def _vectors(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 127.5 - 1
