"""Precision and recall where they are known, and against a plain search of neighbours."""

import types

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from vitdiff_jax.evaluation import precision_recall

METRIC = precision_recall.Metric(types.SimpleNamespace(shared=lambda make, key=None: None))


def result(samples, real):
    return METRIC.result(*([types.SimpleNamespace(vectors=v)] for v in (samples, real)))


def vectors(count, size=5, seed=0):
    return np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)


def whole(count, size=5, seed=0):
    """Whole numbers, whose distances are exact."""
    return np.random.default_rng(seed).integers(0, 9, (count, size)).astype(np.float32)


@pytest.mark.parametrize("make", [vectors, whole])
@pytest.mark.parametrize("count", [4, 50])
def test_equal_sets(make, count):
    """Each vector lies in its own ball, also where there are just enough of them."""
    assert result(make(count), make(count)) == {"value": 1, "recall": 1}


@pytest.mark.parametrize("rows", [7, 1000])
def test_a_plain_search_finds_the_same(monkeypatch, rows):
    """By scikit-learn's neighbours; of which the first is the vector itself."""
    monkeypatch.setattr(precision_recall, "ROWS", rows)
    monkeypatch.setattr(precision_recall, "COLUMNS", rows + 2)
    samples, real = vectors(60), 1.3 * vectors(80, seed=1) + 0.4

    def inside(those, others):
        distances, _ = NearestNeighbors(n_neighbors=4).fit(others).kneighbors(others)
        gaps = np.linalg.norm(those[:, None].astype(float) - others[None].astype(float), axis=-1)
        return (gaps <= distances[:, 3]).any(1).mean()

    wanted = {"value": inside(samples, real), "recall": inside(real, samples)}
    assert 0.1 < min(wanted.values()) < max(wanted.values()) < 1
    assert result(samples, real) == pytest.approx(wanted, rel=1e-9)


def test_balls_reach_to_the_third_neighbour_and_include_it():
    """On a line: from 0 to 3. What is as far as that is inside, what is farther is not."""
    line = np.float32([[0], [1], [2], [3], [50], [60], [70], [80]])
    np.testing.assert_array_equal(
        precision_recall.radii(line), np.square([3, 2, 2, 3, 30, 20, 20, 30])
    )
    reach = precision_recall.radii(line[:4])
    tested = np.float32([[-3], [-3.01], [6], [6.01], [1.5]])
    inside = [precision_recall.fraction_inside(one[None], line[:4], reach) for one in tested]
    assert inside == [1, 0, 1, 0, 1]


def test_distances_are_those_of_numpy():
    """Squared, in float64 and never below zero, also far from the origin."""
    a, b = vectors(9) + 1000, vectors(7, seed=1) + 1000
    b[0] = a[0]
    found = precision_recall.squared_distances(a, b)
    wanted = ((a[:, None].astype(float) - b[None].astype(float)) ** 2).sum(-1)
    np.testing.assert_allclose(found, wanted, atol=1e-8)
    assert found.min() >= 0


@pytest.mark.parametrize("counts", [(3, 50), (50, 3)])
def test_too_few_images_are_an_error(counts):
    with pytest.raises(ValueError, match="needs more than 3 images"):
        result(*map(vectors, counts))
