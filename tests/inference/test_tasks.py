"""What a picture suffers from: tasks as operators, measurements, and the noise in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitdiff_jax import restoration
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import tasks
from vitdiff_jax.operators.compose import Composed
from vitdiff_jax.operators.mask import Mask

RANDOM = np.random.default_rng(0)


def shape_of(found, *shape):
    """Of what an operator makes of images of a shape."""
    return jax.eval_shape(found.forward, jax.ShapeDtypeStruct(shape, jnp.float32)).shape


def operator(task, shape=(12, 16, 3), missing=None):
    return tasks.operator_of(task, shape, np.random.default_rng(0), missing)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_every_task_can_be_made_and_has_a_method(task):
    """At the size of a photograph's part; what is recommended serves it."""
    found = operator(task, (24, 32, 3))
    assert shape_of(found, 1, 24, 32, 3)[0] == 1
    restoration.find(restoration.recommended(found), found)


@pytest.mark.parametrize(
    ("task", "method"),
    [
        ("denoise", "ddrm"),
        ("mask:kind=box", "flower"),
        ("blur:size=3", "flower"),
        ("downsample:factor=2+mask:share=0.3", "pnpflow"),
        ("radon:angles=4", "diffpir"),
        ("colourise+radon:angles=4", "diffpir"),
        ("artefacts", "dps"),
    ],
)
def test_what_is_recommended_follows_from_what_an_operator_says_of_itself(task, method):
    found = operator(task, (16, 16, 3))
    assert restoration.recommended(found) == method
    assert restoration.recommended(found, hint=True) == "palette"


def test_options_stand_over_those_of_the_task():
    assert shape_of(operator("upscale"), 1, 12, 16, 3) == (1, 3, 4, 3)
    assert shape_of(operator("upscale:factor=2"), 1, 12, 16, 3) == (1, 6, 8, 3)
    assert operator("downsample:factor=3,kind=average", (9, 9, 1)).rows.max() == np.float32(1 / 3)


def test_a_mask_comes_after_everything_else():
    """White is missing; alone it is a mask, which RePaint can use."""
    missing = RANDOM.random((12, 16)) < 0.5
    x = jnp.asarray(RANDOM.uniform(-1, 1, (2, 12, 16, 3)), jnp.float32)
    alone = operator("inpaint", missing=missing)
    assert isinstance(alone, Mask)
    np.testing.assert_array_equal(alone.forward(x), np.where(missing[..., None], 0, x))
    old = operator("colourise", missing=missing)
    assert isinstance(old, Composed)
    grey = np.asarray(x).mean(-1, keepdims=True)
    np.testing.assert_allclose(old.forward(x), np.where(missing[..., None], 0, grey), atol=1e-6)


@pytest.mark.parametrize(
    ("task", "missing", "message"),
    [
        ("sharpen", None, "task: name: there is no operator 'sharpen', only .*blur"),
        ("upscale:factor=5", None, "task: factor: 5 does not divide 12x16"),
        ("deblur:radius=3", None, "task: blur: .*radius"),
        ("dps/bax", None, "task: there is no preset 'dps/bax'"),
        ("inpaint", np.zeros((3, 4), bool), "mask: the mask has 4x3 pixels, .* 16x12"),
        ("upscale", np.zeros((12, 16), bool), "mask: the mask has 16x12 pixels, .* 4x3"),
    ],
)
def test_impossible_tasks_are_one_line(task, missing, message):
    with pytest.raises(ConfigError, match=message) as error:
        operator(task, missing=missing)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "picture", "channels", "shape", "y", "result"),
    [
        ("denoise", (8, 6, 3), 3, (8, 6, 3), (1, 8, 6, 3), 3),
        ("denoise", (8, 6, 1), 3, (8, 6, 3), (1, 8, 6, 3), 1),  # grey by a model of colours
        ("denoise", (8, 6, 3), 1, (8, 6, 1), (3, 8, 6, 1), 3),  # each colour by itself
        ("upscale:factor=2", (8, 6, 3), 3, (16, 12, 3), (1, 8, 6, 3), 3),
        ("colourise", (8, 6, 1), 3, (8, 6, 3), (1, 8, 6, 1), 3),
        ("colourise", (8, 6, 3), 3, (8, 6, 3), (1, 8, 6, 1), 3),  # sepia counts as grey
        ("downsample:factor=2+colourise", (8, 6, 1), 3, (16, 12, 3), (1, 8, 6, 1), 3),
    ],
)
def test_pictures_as_they_come(task, picture, channels, shape, y, result):
    x = RANDOM.uniform(-1, 1, picture).astype(np.float32)
    case = tasks.from_measurement(x, channels, task, noise_std=0.0)
    assert (case.shape, case.y.shape, case.channels) == (shape, y, result)
    assert shape_of(case.operator, 1, *shape)[1:] == y[1:]
    assert case.picture.shape == (*shape[:2], result)
    if task == "denoise":
        np.testing.assert_allclose(case.picture, x, atol=1e-6)


def test_a_sinogram_is_no_picture():
    x = np.zeros((8, 8, 1), np.float32)
    with pytest.raises(ConfigError, match=r"radon.* not images of .*--degrade"):
        tasks.from_measurement(x, 1, "radon:angles=5")


def test_planes_and_back():
    x = RANDOM.uniform(-1, 1, (5, 4, 3)).astype(np.float32)
    grey = x[..., :1]
    for picture, channels in ((x, 3), (x, 1), (grey, 3), (grey, 1)):
        planes = tasks.to_planes(picture, channels)
        assert planes.shape[1:] == (5, 4, channels)
        back = tasks.from_planes(planes, picture.shape[2])
        np.testing.assert_allclose(back, picture, atol=1e-6)


def test_damage_is_the_operator_and_noise_of_each_images_own_seed():
    x = RANDOM.uniform(-1, 1, (3, 16, 16, 1)).astype(np.float32)
    case = tasks.from_clean(x, "denoise", None, 0.1, np.array([5, 6, 5]))
    noise = (case.y - x) / 0.1
    assert abs(noise.std() - 1) < 0.1
    np.testing.assert_allclose(noise[0], noise[2], atol=1e-4)
    assert abs(noise[0] - noise[1]).max() > 0.5
    alone = tasks.from_clean(x[1:2], "denoise", None, 0.1, np.array([6]))
    np.testing.assert_array_equal(alone.y[0], case.y[1])


def test_complex_measurements_have_noise_in_both_parts():
    x = np.zeros((1, 32, 32, 1), np.float32)
    y = tasks.from_clean(x, "fourier:share=1.0", None, 0.1, np.array([0])).y
    assert y.dtype == np.complex64
    for part in (y.real, y.imag):
        assert abs(part.std() / 0.1 - 1) < 0.15


@pytest.mark.parametrize("task", ["mask:kind=random,share=0.5", "fourier:share=0.25"])
def test_what_is_not_measured_has_no_noise(task):
    """And what is measured has, also where the image is grey, which is 0."""
    x = np.zeros((2, 16, 16, 1), np.float32)
    case = tasks.from_clean(x, task, None, 0.1, np.array([0, 1]))
    there = np.broadcast_to(np.asarray(case.operator.known) > 0, case.y.shape)
    assert (case.y[~there] == 0).all()
    assert (case.y[there] != 0).all()


def test_presets_bring_their_noise():
    x = np.zeros((1, 256, 256, 1), np.float32)
    assert tasks.from_clean(x, "ddrm/denoise", None, None, np.array([0])).noise_std == 0.1
    assert tasks.from_clean(x, "dps/box:side=0.3", None, None, np.array([0])).noise_std == 0.05
    assert tasks.from_clean(x, "denoise", None, None, np.array([0])).noise_std == 0.0


@pytest.mark.parametrize("std", [0.05, 0.2])
def test_noise_is_estimated(std):
    """On a smooth image, to a tenth; also around a hole, whose edge is no noise."""
    down, across = np.mgrid[:128, :128] / 128
    smooth = np.stack([np.sin(3 * down), np.cos(2 * across), down * across], -1)
    y = smooth + std * RANDOM.standard_normal(smooth.shape)
    assert tasks.estimate_noise(y) == pytest.approx(std, rel=0.1)
    missing = np.zeros((128, 128), bool)
    missing[30:70, 40:80] = True
    y[missing] = 0
    assert tasks.estimate_noise(y, missing) == pytest.approx(std, rel=0.15)
    assert tasks.estimate_noise(smooth) == 0.0
