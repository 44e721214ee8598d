"""SSIM against scikit-image's with the published window."""

import types

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from vitdiff_jax.evaluation import ssim
from vitdiff_jax.evaluation.metric import Batch, Measured, PairExtractor


def pairs(shape, count=3):
    """Smooth pictures, and the same with more and more noise."""
    random = np.random.default_rng(0)
    height, width, channels = shape
    waves = np.sin(np.arange(height)[:, None, None] / 4 + np.arange(width)[:, None] / 3)
    first = 127 + 90 * waves + 20 * np.arange(channels)
    first = np.clip(np.stack([first] * count), 0, 255).astype(np.uint8)
    noise = random.normal(0, 1, first.shape) * 15.0 * np.arange(1, count + 1)[:, None, None, None]
    return first, np.clip(first + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("shape", [(32, 32, 3), (11, 11, 1), (12, 40, 3), (40, 11, 1)])
def test_scikit_images(shape):
    """Down to the size of the window, which fits once then."""
    first, second = pairs(shape)
    wanted = [
        structural_similarity(
            a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
            data_range=255, channel_axis=-1,
        )
        for a, b in zip(first, second)
    ]  # fmt: skip
    found = ssim.ssim(first, second)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)
    assert (np.diff(found) < 0).all()


def test_equal_images_are_one():
    """Black ones too."""
    first, _ = pairs((16, 20, 3))
    first[1] = 0
    np.testing.assert_allclose(ssim.ssim(first, first), 1, rtol=1e-12)


def test_constant_images():
    """Only the means count: (2 a b + c1) / (a^2 + b^2 + c1)."""
    a, b = (np.full((1, 15, 13, 1), level, np.uint8) for level in (60, 130))
    c1 = (0.01 * 255) ** 2
    wanted = (2 * 60 * 130 + c1) / (60**2 + 130**2 + c1)
    np.testing.assert_allclose(ssim.ssim(a, b), wanted, rtol=1e-9)


def test_is_symmetric_and_below_zero_for_a_negative():
    first, second = pairs((16, 20, 3))
    np.testing.assert_allclose(ssim.ssim(first, second), ssim.ssim(second, first), rtol=1e-12)
    assert ssim.ssim(first, 255 - first).max() < 0


def test_the_metric_is_the_mean():
    first, second = pairs((16, 20, 3))
    metric = ssim.Metric(types.SimpleNamespace(shared=lambda make, key: make(None)))
    measured = Measured(metric.parts, 3)
    measured.update(Batch(first[:2], truth=second[:2]))
    measured.update(Batch(first[2:], truth=second[2:]))
    each = ssim.ssim(first, second)
    assert metric.result(measured.of(metric), ()) == pytest.approx(
        {"value": each.mean(), "standard_error": each.std(ddof=1) / 3**0.5}, rel=1e-9
    )


@pytest.mark.parametrize("shape", [(10, 32, 3), (32, 10, 3)])
def test_too_small_images_are_named_by_their_size(shape):
    with pytest.raises(
        ValueError, match=f"{shape[0]}x{shape[1]} are smaller than the window of 11"
    ):
        ssim.ssim(*pairs(shape))


def test_needs_the_true_images():
    with pytest.raises(ValueError, match="ssim compares pairs of images: --truth is required"):
        PairExtractor("ssim", ssim.ssim)(Batch(pairs((16, 16, 3))[0]))
