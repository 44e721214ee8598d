"""The Fréchet distance in pixels, of real images and noise; see `test_frechet` for the formula."""

import numpy as np
import pytest

from tests.evaluation.test_frechet import by_sqrtm
from vitdiff_jax.data import pipeline
from vitdiff_jax.evaluation import pixel_frechet
from vitdiff_jax.evaluation.metric import Batch, Measured


@pytest.fixture
def distance(setting):
    """A function: images, others -> the metric's value."""
    metric = pixel_frechet.Metric(setting)

    def measured(images):
        found = Measured(metric.parts, len(images))
        found.update(Batch(images))
        return found.of(metric)

    return lambda *both: metric.result(*map(measured, both))["value"]


def gaussian(images):
    """(mean, covariance) of images as vectors in [-1, 1], by NumPy.

    Pixels that are always black have no variance: a little on the diagonal helps SciPy's root.
    """
    vectors = images.reshape(len(images), -1) / 127.5 - 1
    return vectors.mean(0), np.cov(vectors.T) + 1e-12 * np.eye(vectors.shape[1])


def test_two_real_splits(distance, dataset, heldout):
    train = pipeline.stacked(dataset.train)["image"]
    wanted = by_sqrtm(gaussian(train), gaussian(heldout["image"]))
    assert distance(train, heldout["image"]) == pytest.approx(wanted, rel=1e-3)
    assert abs(distance(train, train)) < 1e-6
