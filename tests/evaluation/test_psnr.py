"""PSNR where it has a closed form, and scikit-image's."""

import types

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from vitdiff_jax.evaluation import psnr
from vitdiff_jax.evaluation.metric import Batch, Measured, PairExtractor


def noise(count, shape=(6, 9, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


@pytest.mark.parametrize("offset", [1, 7, 255])
def test_a_constant_offset(offset):
    """20 log10(255 / offset), upwards and downwards: bytes must not wrap."""
    low = np.zeros((2, 4, 5, 3), np.uint8)
    wanted = np.full(2, 20 * np.log10(255 / offset))
    np.testing.assert_allclose(psnr.psnr(low, low + np.uint8(offset)), wanted, atol=1e-12)
    np.testing.assert_allclose(psnr.psnr(low + np.uint8(offset), low), wanted, atol=1e-12)


def test_one_channel_of_three():
    """The mean is over channels too, before the logarithm."""
    first = np.zeros((1, 4, 4, 3), np.uint8)
    second = first.copy()
    second[..., 1] = 30
    np.testing.assert_allclose(psnr.psnr(first, second), 10 * np.log10(3 * 255**2 / 30**2))


def test_equal_images_are_infinitely_near():
    assert psnr.psnr(noise(2), noise(2)).tolist() == [np.inf, np.inf]


@pytest.mark.parametrize("shape", [(6, 9, 3), (7, 5, 1)])
def test_scikit_images(shape):
    first, second = noise(4, shape), noise(4, shape, seed=1)
    wanted = [peak_signal_noise_ratio(b, a, data_range=255) for a, b in zip(first, second)]
    np.testing.assert_allclose(psnr.psnr(first, second), wanted, rtol=1e-12)


def test_the_metric_is_the_mean_of_decibels():
    """Not the decibels of the mean, with the standard error of that mean."""
    first = noise(6)
    second = np.clip(first + np.arange(1, 7)[:, None, None, None] * 9, 0, 255).astype(np.uint8)
    metric = psnr.Metric(types.SimpleNamespace(shared=lambda make, key: make(None)))
    measured = Measured(metric.parts, 6)
    measured.update(Batch(first[:4], truth=second[:4]))
    measured.update(Batch(first[4:], truth=second[4:]))
    each = psnr.psnr(first, second)
    assert metric.result(measured.of(metric), ()) == pytest.approx(
        {"value": each.mean(), "standard_error": each.std(ddof=1) / 6**0.5}, rel=1e-9
    )


def test_needs_the_true_images():
    with pytest.raises(ValueError, match="psnr compares pairs of images: --truth is required"):
        PairExtractor("psnr", psnr.psnr)(Batch(noise(1)))
