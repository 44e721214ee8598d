"""The Fréchet distance of Gaussians, where it has a closed form or SciPy's matrix root has one."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from vitdiff_jax.evaluation.frechet import Moments, frechet_distance

RANDOM = np.random.default_rng(0)
SIZE = 12


def gaussian(rank=SIZE, seed=0):
    """(mean, covariance) of some Gaussian whose covariance has this rank."""
    random = np.random.default_rng(seed)
    factor = random.standard_normal((SIZE, rank))
    return random.standard_normal(SIZE), factor @ factor.T


def by_sqrtm(first, second):
    """FID's formula as published (arXiv:1706.08500): with the root of the unsymmetric product."""
    (mean1, cov1), (mean2, cov2) = first, second
    root = np.trace(sqrtm(cov1 @ cov2)).real
    return ((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * root


def test_commuting_covariances():
    """With common axes it is the distance of the means plus that of the standard deviations."""
    axes, _ = np.linalg.qr(RANDOM.standard_normal((SIZE, SIZE)))
    means, stds = RANDOM.standard_normal((2, SIZE)), RANDOM.uniform(0, 2, (2, SIZE))
    first, second = ((m, (axes * s**2) @ axes.T) for m, s in zip(means, stds))
    wanted = ((means[0] - means[1]) ** 2).sum() + ((stds[0] - stds[1]) ** 2).sum()
    assert frechet_distance(first, second) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_covariances(seed):
    first, second = gaussian(seed=seed), gaussian(seed=seed + 10)
    cov1, cov2 = first[1], second[1]
    assert abs(cov1 @ cov2 - cov2 @ cov1).max() > 1  # these do not commute
    assert frechet_distance(first, second) == pytest.approx(by_sqrtm(first, second), rel=1e-8)


def test_rank_one_covariances():
    """tr (u u' v v')^(1/2) = |u . v|: exact where a general root is worst."""
    u, v = RANDOM.standard_normal((2, SIZE))
    first, second = ((np.zeros(SIZE), np.outer(a, a)) for a in (u, v))
    wanted = u @ u + v @ v - 2 * abs(u @ v)
    assert frechet_distance(first, second) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("rank", [3, SIZE])
def test_is_zero_on_itself(rank):
    """Also with fewer samples than pixels, or pixels that never change."""
    same = gaussian(rank)
    assert abs(frechet_distance(same, same)) < 1e-6 * np.trace(same[1])


def test_moments_are_numpys():
    """Mean and unbiased covariance, in float64 also of float32, however the vectors come in."""
    vectors = RANDOM.standard_normal((57, SIZE)).astype(np.float32)
    moments = Moments(SIZE)
    for part in (vectors[:20], vectors[20:56], vectors[56:]):
        moments.update(part)
    vectors = vectors.astype(np.float64)
    mean, covariance = moments.gaussian()
    np.testing.assert_allclose(mean, vectors.mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(vectors.T), rtol=1e-10, atol=1e-14)


def test_moments_of_pixels_that_hardly_change():
    """Sums of squares cancel: white borders must come out with the variance that they have."""
    pixels = np.full((5000, 2), 255, np.uint8)
    pixels[::2, 0] = 254
    _, covariance = Moments(2).update(pixels / 127.5 - 1).gaussian()
    np.testing.assert_allclose(covariance, np.cov(pixels.T / 127.5), atol=1e-12)
