"""Thresholding of the estimate of x, against its definition image by image."""

import jax.numpy as jnp
import numpy as np
import pytest

from vitdiff_jax.diffusion.threshold import threshold

SCALES = np.array([0.3, 1.0, 3.0])  # of the first image no value is outside
IMAGES = SCALES[:, None, None, None] * np.random.default_rng(0).uniform(-1, 1, (3, 5, 4, 2))
T = jnp.full(3, 0.5)


def estimate(x_t, t):
    return jnp.asarray(IMAGES, x_t.dtype)


def test_static_clips():
    found = threshold(estimate, "static")(jnp.zeros(IMAGES.shape), T)
    np.testing.assert_allclose(found, np.clip(IMAGES, -1, 1), rtol=1e-6)


@pytest.mark.parametrize("quantile", [0.5, 0.9, 1.0])
def test_dynamic_is_imagens(quantile):
    """arXiv:2205.11487, section 2.3: a quantile of |x| of each image, at least 1."""
    found = threshold(estimate, "dynamic", quantile)(jnp.zeros(IMAGES.shape), T)
    for got, image in zip(np.asarray(found), IMAGES):
        s = max(1, np.quantile(np.abs(image), quantile))
        np.testing.assert_allclose(got, np.clip(image, -s, s) / s, rtol=1e-5)
    assert abs(found).max() <= 1
    np.testing.assert_allclose(found[0], IMAGES[0], rtol=1e-6)  # no change where there is no need


def test_none_is_the_denoiser_itself():
    assert threshold(estimate, "none") is estimate


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("clip",), "threshold: 'clip' is not one of none, static, dynamic"),
        (("dynamic", 0.0), "threshold_quantile: 0.0"),
        (("dynamic", 99.5), "threshold_quantile: 99.5"),
    ],
)
def test_what_is_no_threshold_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        threshold(estimate, *arguments)
