"""PSNR and SSIM where they have a closed form, and scikit-image's."""

import types

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vitdiff_jax.evaluation import psnr, ssim
from vitdiff_jax.evaluation.metric import Batch, Measured, PairExtractor

BOTH = pytest.mark.parametrize("kind", [psnr, ssim], ids=["psnr", "ssim"])


def pairs(shape=(16, 20, 3), count=3):
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
    """SSIM with the published window, down to its size: it fits once then."""
    first, second = pairs(shape)
    options = dict(
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255,
        channel_axis=-1,
    )  # fmt: skip
    wanted = [structural_similarity(a, b, **options) for a, b in zip(first, second)]
    np.testing.assert_allclose(ssim.ssim(first, second), wanted, rtol=1e-9, atol=1e-12)
    assert (np.diff(wanted) < 0).all()
    wanted = [peak_signal_noise_ratio(b, a, data_range=255) for a, b in zip(first, second)]
    np.testing.assert_allclose(psnr.psnr(first, second), wanted, rtol=1e-12)


@pytest.mark.parametrize("offset", [1, 7, 255])
def test_psnr_of_a_constant_offset(offset):
    """20 log10(255 / offset), upwards and downwards: bytes must not wrap."""
    low = np.zeros((2, 4, 5, 3), np.uint8)
    wanted = np.full(2, 20 * np.log10(255 / offset))
    np.testing.assert_allclose(psnr.psnr(low, low + np.uint8(offset)), wanted, atol=1e-12)
    np.testing.assert_allclose(psnr.psnr(low + np.uint8(offset), low), wanted, atol=1e-12)


def test_psnr_of_one_channel_of_three():
    """The mean is over channels too, before the logarithm."""
    first = np.zeros((1, 4, 4, 3), np.uint8)
    second = first.copy()
    second[..., 1] = 30
    np.testing.assert_allclose(psnr.psnr(first, second), 10 * np.log10(3 * 255**2 / 30**2))


def test_equal_images():
    """Black ones too."""
    first, _ = pairs()
    first[1] = 0
    np.testing.assert_allclose(ssim.ssim(first, first), 1, rtol=1e-12)
    assert (psnr.psnr(first, first) == np.inf).all()


def test_ssim_of_constant_images():
    """Only the means count: (2 a b + c1) / (a^2 + b^2 + c1)."""
    a, b = (np.full((1, 15, 13, 1), level, np.uint8) for level in (60, 130))
    c1 = (0.01 * 255) ** 2
    wanted = (2 * 60 * 130 + c1) / (60**2 + 130**2 + c1)
    np.testing.assert_allclose(ssim.ssim(a, b), wanted, rtol=1e-9)


def test_ssim_is_symmetric_and_below_zero_for_a_negative():
    first, second = pairs()
    np.testing.assert_allclose(ssim.ssim(first, second), ssim.ssim(second, first), rtol=1e-12)
    assert ssim.ssim(first, 255 - first).max() < 0


@BOTH
def test_the_metric_is_the_mean(kind):
    """Of decibels, not the decibels of the mean; with the standard error of that mean."""
    first, second = pairs()
    metric = kind.Metric(types.SimpleNamespace(shared=lambda make, key: make(None)))
    measured = Measured(metric.parts, 3)
    measured.update(Batch(first[:2], truth=second[:2]))
    measured.update(Batch(first[2:], truth=second[2:]))
    each = psnr.psnr(first, second) if kind is psnr else ssim.ssim(first, second)
    assert metric.result(measured.of(metric), ()) == pytest.approx(
        {"value": each.mean(), "standard_error": each.std(ddof=1) / 3**0.5}, rel=1e-9
    )


@pytest.mark.parametrize("shape", [(10, 32, 3), (32, 10, 3)])
def test_images_too_small_for_ssim_are_named_by_their_size(shape):
    wrong = f"{shape[0]}x{shape[1]} are smaller than the window of 11"
    with pytest.raises(ValueError, match=wrong):
        ssim.ssim(*pairs(shape))


def test_pairs_need_the_true_images():
    with pytest.raises(ValueError, match="psnr compares pairs of images: --truth is required"):
        PairExtractor("psnr", psnr.psnr)(Batch(pairs()[0]))
