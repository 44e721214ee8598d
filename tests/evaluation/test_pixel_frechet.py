"""The Fréchet distance of Gaussians, where it has a closed form or SciPy's matrix root has one."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from vitdiff_jax.data import pipeline
from vitdiff_jax.evaluation import pixel_frechet
from vitdiff_jax.evaluation.pixel_frechet import Moments, frechet_distance

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


@pytest.mark.parametrize("rank", [3, SIZE])
def test_is_symmetric(rank):
    first, second = gaussian(rank, seed=1), gaussian(seed=2)
    there, back = frechet_distance(first, second), frechet_distance(second, first)
    assert there == pytest.approx(back, rel=1e-6)
    assert there > 1


def test_moments_are_numpys():
    """Mean and unbiased covariance of pixels in [-1, 1], however the images come in."""
    images = RANDOM.integers(0, 256, (57, 2, 3, 2), np.uint8)
    moments = Moments(12)
    for part in (images[:20], images[20:56], images[56:]):
        moments.update(part)
    vectors = images.reshape(57, 12) / 127.5 - 1
    mean, covariance = moments.gaussian()
    np.testing.assert_allclose(mean, vectors.mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(vectors.T), rtol=1e-10, atol=1e-14)


def test_moments_of_pixels_that_hardly_change():
    """Sums of squares cancel: white borders must come out with the variance that they have."""
    images = np.full((5000, 1, 2, 1), 255, np.uint8)
    images[::2, 0, 0] = 254
    _, covariance = Moments(2).update(images).gaussian()
    wanted = np.cov(images.reshape(5000, 2).T / 127.5)
    np.testing.assert_allclose(covariance, wanted, atol=1e-12)


def test_real_images_have_no_distance_to_themselves(dataset, heldout):
    """And the floor beside it is the distance of the two real splits."""
    metric = pixel_frechet.Metric(dataset)
    metric.update(heldout["image"], heldout["label"])
    result = metric.result()
    assert abs(result["value"]) < 1e-6
    first, second = (
        (v.mean(0), np.cov(v.T))
        for v in (
            split["image"].reshape(-1, 64) / 127.5 - 1
            for split in (pipeline.stacked(dataset.train), heldout)
        )
    )
    # Pixels that are always black have no variance: a little on the diagonal helps SciPy's root.
    wanted = by_sqrtm(*((mean, cov + 1e-12 * np.eye(64)) for mean, cov in (first, second)))
    assert result["floor"] == pytest.approx(wanted, rel=1e-3)


def test_noise_is_far_from_real_images(dataset):
    metric = pixel_frechet.Metric(dataset)
    metric.update(RANDOM.integers(0, 256, (500, 8, 8, 1), np.uint8), np.zeros(500))
    result = metric.result()
    assert result["value"] > 20 * result["floor"]
