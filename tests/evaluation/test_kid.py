"""The kernel distance against plain sums, and what unbiased means."""

import itertools

import numpy as np
import pytest

from vitdiff_jax.evaluation import kid


def vectors(count, size=4, shift=0.0, seed=0):
    return np.random.default_rng(seed).standard_normal((count, size)) + shift


def by_sums(first, second):
    """The unbiased estimate of the squared MMD, as defined: over all pairs of different vectors."""

    def kernel(a, b):
        return (np.dot(a, b) / len(a) + 1) ** 3

    def mean(pairs):
        return np.mean([kernel(a, b) for a, b in pairs])

    own = mean(itertools.permutations(first, 2)) + mean(itertools.permutations(second, 2))
    return own - 2 * mean(itertools.product(first, second))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_whole_sets_are_plain_sums(dtype):
    """With as many vectors as a subset has, each subset is everything: no spread either."""
    first, second = vectors(20).astype(dtype), vectors(20, shift=0.5, seed=1).astype(dtype)
    value, std = kid.kernel_distance(first, second)
    wanted = by_sums(first.astype(float), second.astype(float))
    assert value == pytest.approx(wanted, rel=1e-9)
    assert std < 1e-9


def test_subsets_are_as_large_as_the_smaller_set():
    """Which is then used whole, in each of them."""
    few, many = vectors(3), vectors(4, shift=1, seed=1)
    value, std = kid.kernel_distance(few, many)
    found = [by_sums(few, many[list(i)]) for i in itertools.combinations(range(4), 3)]
    assert min(found) < value < max(found)
    assert value == pytest.approx(np.mean(found), abs=5 * np.std(found) / kid.SUBSETS**0.5)
    assert std == pytest.approx(np.std(found), rel=0.3)


def test_grows_with_the_distance(monkeypatch):
    monkeypatch.setattr(kid, "SUBSETS", 4)
    first = vectors(1200)
    found = [kid.kernel_distance(first, vectors(1100, shift=s, seed=1))[0] for s in (0, 0.2, 0.5)]
    assert abs(found[0]) < 0.02
    assert found[1] > 5 * abs(found[0])
    assert found[2] > 3 * found[1]
