"""The classifier's verdict on images whose labels are known."""

import dataclasses

import numpy as np
import pytest

from vitdiff_jax.data import pipeline
from vitdiff_jax.evaluation import class_accuracy


@pytest.fixture(scope="module")
def make(dataset):
    """A fresh metric without training the classifier again."""
    trained = class_accuracy.Metric(dataset)

    def fresh():
        metric = object.__new__(class_accuracy.Metric)
        metric.__dict__ |= trained.__dict__
        return metric

    return fresh


def test_held_out_images_reach_the_ceiling(make, heldout):
    """Perfect samples are as good as real images: `value` is `heldout`."""
    metric = make()
    metric.update(heldout["image"], {"label": heldout["label"]})
    result = metric.result()
    assert result["value"] == result["heldout"] > 0.98


def test_training_images_are_nearly_all_known(make, dataset):
    train = pipeline.stacked(dataset.train)
    metric = make()
    metric.update(train["image"], {"label": train["label"]})
    assert metric.result()["value"] > 0.99


def test_wrong_labels_score_as_chance(make, heldout):
    """Ten classes: a label drawn blindly is right one time in ten (five standard errors)."""
    metric, random = make(), np.random.default_rng(0)
    labels = random.integers(0, 10, len(heldout["label"]))
    metric.update(heldout["image"], {"label": labels})
    error = 5 * np.sqrt(0.1 * 0.9 / len(heldout["label"]))
    assert abs(metric.result()["value"] - 0.1) < error


def test_noise_is_not_a_ten_of_all_classes(make):
    """Samples of nothing get some class, and can be right by chance alone."""
    random = np.random.default_rng(0)
    metric = make()
    images, labels = random.integers(0, 256, (1000, 8, 8, 1), np.uint8), np.arange(1000) % 10
    metric.update(images, {"label": labels})
    assert metric.result()["value"] < 0.2


def test_needs_classes(dataset):
    with pytest.raises(ValueError, match="needs a data set with classes"):
        class_accuracy.Metric(dataclasses.replace(dataset, conditions={}))
