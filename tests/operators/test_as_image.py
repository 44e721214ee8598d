"""Measurements as images: y itself, a pseudo-inverse, or least squares."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.operators.test_operators import dense, flat, forward, make, measurement
from vitdiff_jax.operators.inverse import AS_IMAGE_WEIGHT, as_image
from vitdiff_jax.operators.parsing import parse

pytestmark = pytest.mark.usefixtures("x64")
SHAPE = (6, 6, 3)
MASKS = ["mask:kind=box", "mask:kind=random", "mask:kind=strokes"]
ITSELF = ["denoise", "blur:size=5", "blur:kind=motion,size=5", "jpeg", "hdr",
          "blur:size=5,border=circular"]  # fmt: skip
INVERTED = ["downsample:factor=2", "downsample:factor=3,kind=average", "colourise",
            "fourier:kind=lines", "fourier:kind=random"]  # fmt: skip


picture = jax.jit(as_image, static_argnums=2)


def shown(text):
    """(operator, y, the image that shows it) of a text."""
    operator: Any = make(parse(text), SHAPE)
    y = measurement(operator, np.random.default_rng(0), shape=SHAPE)
    return operator, y, picture(operator, y, SHAPE)


@pytest.mark.parametrize("text", ITSELF)
def test_what_is_an_image_is_shown_as_it_is(text):
    _, y, found = shown(text)
    np.testing.assert_array_equal(found, y)


@pytest.mark.parametrize("text", MASKS)
def test_what_a_mask_hides_is_grey(text):
    """Whatever noise or number stands there: a person's file and a benchmark's look alike."""
    operator, y, found = shown(text)
    known = np.broadcast_to(operator.known, y.shape) > 0
    assert 0 < known.mean() < 1
    np.testing.assert_array_equal(found, np.where(known, y, 0))


@pytest.mark.parametrize("text", INVERTED)
def test_what_is_none_is_shown_by_the_pseudo_inverse(text):
    operator, y, found = shown(text)
    inverse = np.linalg.pinv(dense(operator, SHAPE), rcond=1e-3)
    np.testing.assert_allclose(flat(found), flat(y) @ inverse.T, atol=1e-9)


@pytest.mark.parametrize("size", [SHAPE[0], pytest.param(5, marks=pytest.mark.slow)])
def test_least_squares_where_there_is_no_svd(size):
    """Of as many angles as rows, too, where y looks like an image but is none."""
    text = f"radon:angles={size}"
    operator, y, found = shown(text)
    matrix = dense(operator, SHAPE)
    normal = matrix.T @ matrix + AS_IMAGE_WEIGHT * np.eye(matrix.shape[1])
    wanted = np.linalg.solve(normal, (flat(y) @ matrix).T).T
    np.testing.assert_allclose(flat(found), wanted, atol=1e-4)


def test_several_damages_are_taken_back_from_the_last():
    whole, y, found = shown("downsample:factor=2+colourise+mask")
    small, grey, mask = whole.parts
    middle = flat(mask.forward(y)) @ np.linalg.pinv(dense(grey, (3, 3, 3)), rcond=1e-3).T
    wanted = middle @ np.linalg.pinv(dense(small, SHAPE), rcond=1e-3).T
    np.testing.assert_allclose(flat(found), wanted, atol=1e-9)
    assert found.shape == (2, *SHAPE)


@pytest.mark.parametrize("text", ["downsample:factor=2+jpeg:quality=50", "blur:size=5+fourier"])
def test_several_damages_may_end_in_anything(text):
    _, _, found = shown(text)
    assert found.shape == (2, *SHAPE)
    assert found.dtype == jnp.float64


EVEN = ["denoise", "downsample:factor=3,kind=average", "colourise", "blur:size=5",
        "downsample:factor=2,kind=average+colourise"]  # fmt: skip


@pytest.mark.parametrize("text", EVEN)
def test_an_even_image_is_shown_as_itself(text):
    """Nothing is scaled: these degradations change nothing where all is of one brightness."""
    operator = make(parse(text), SHAPE)
    x = np.full((1, *SHAPE), 0.7)
    np.testing.assert_allclose(picture(operator, forward(operator, x), SHAPE), x, atol=1e-6)


def test_it_keeps_float32():
    operator, y, wanted = shown("downsample:factor=2+fourier")
    found = picture(operator, y.astype(jnp.complex64), SHAPE)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_what_cannot_be_shown_is_refused():
    class Squared:
        linear = False

        def forward(self, x):
            return x[:, :2] ** 2

    with pytest.raises(ValueError, match=r"Squared is not linear and .* not an image of .*6, 6"):
        as_image(Squared(), jnp.zeros((1, 2, 6, 3)), SHAPE)
