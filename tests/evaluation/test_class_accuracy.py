"""The classifier's verdict on images whose labels are known."""

import dataclasses

import numpy as np
import pytest

from vitdiff_jax.evaluation import class_accuracy
from vitdiff_jax.evaluation.metric import Batch, Measured, Setting
from vitdiff_jax.runtime import parallel


@pytest.fixture(scope="module")
def share(setting, heldout):
    """A function: images, labels -> the metric's result, with the held-out images as reference."""
    metric = class_accuracy.Metric(setting)

    def measured(images, labels):
        found = Measured(metric.parts, len(images))
        found.update(Batch(images, {"label": labels}))
        return found.of(metric)

    reference = measured(heldout["image"], heldout["label"])
    return lambda images, labels: metric.result(measured(images, labels), reference)


def test_held_out_images_reach_the_ceiling(share, heldout):
    """Perfect samples are as good as real images: `value` is `reference`."""
    result = share(heldout["image"], heldout["label"])
    assert result["value"] == result["reference"] > 0.98


def test_wrong_labels_score_as_chance(share, heldout):
    """Ten classes: a label drawn blindly is right one time in ten (five standard errors)."""
    labels = np.random.default_rng(0).integers(0, 10, len(heldout["label"]))
    error = 5 * np.sqrt(0.1 * 0.9 / len(labels))
    assert abs(share(heldout["image"], labels)["value"] - 0.1) < error


def test_needs_classes(dataset):
    without = Setting(lambda: dataclasses.replace(dataset, conditions={}), parallel.make_mesh())
    with pytest.raises(ValueError, match="needs a data set with classes"):
        class_accuracy.Metric(without)


def test_needs_to_know_what_was_asked_for(setting, heldout):
    """Images from a folder come without labels."""
    metric = class_accuracy.Metric(setting)
    with pytest.raises(ValueError, match="needs the class labels of the images"):
        Measured(metric.parts, 2).update(Batch(heldout["image"][:2]))
