"""FDr of images whose distances are computed here, by SciPy's matrix root."""

import numpy as np
import pytest
import scipy.linalg

from vitdiff_jax.data.pipeline import Dataset, InMemory
from vitdiff_jax.evaluation import fdr
from vitdiff_jax.evaluation.metric import Batch, Measured, Setting
from vitdiff_jax.runtime import parallel

RANDOM = np.random.default_rng(0)
SHAPE = (2, 2, 1)


def images(low, high, count=60):
    return RANDOM.integers(low, high, (count, *SHAPE), dtype=np.uint8)


def distance(a, b):
    a, b = (x.reshape(len(x), -1) / 127.5 - 1 for x in (a, b))
    one, two = np.cov(a.T), np.cov(b.T)
    root = np.real(scipy.linalg.sqrtm(one @ two))
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + two - 2 * root)


def test_it_is_relative_to_held_out_and_training_images():
    train, heldout, samples = images(0, 200), images(20, 220), images(0, 256)
    none = np.zeros(60, np.int32)
    data = Dataset(InMemory(train, none), InMemory(heldout, none), SHAPE, {})
    metric = fdr.Metric(Setting(lambda: data, parallel.make_mesh()))
    assert metric.name == "fdr/pixels"  # no classes: no classifier
    found = []
    for which in (samples, heldout):
        measured = Measured(metric.parts, 60)
        measured.update(Batch(which))
        found.append(measured.of(metric))
    wanted = distance(samples, heldout) / distance(heldout, train)
    assert metric.result(*found)["value"] == pytest.approx(wanted, rel=1e-6)
