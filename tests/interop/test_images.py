"""Images in and out: nothing is lost at the edges, no pixel is invented for the eye."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vitdiff_jax.interop import images

RANDOM = np.random.default_rng(0)


def test_all_256_values_come_back():
    u = np.arange(256, dtype=np.uint8)
    x = images.from_uint8(u)
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, np.linspace(-1, 1, 256), atol=1e-6)
    back = images.to_uint8(x)
    assert back.dtype == jnp.uint8
    np.testing.assert_array_equal(back, u)


def test_to_uint8_clips_and_rounds_to_the_nearest():
    """Samples leave [-1, 1] a little; half a grey level either way is the same grey."""
    np.testing.assert_array_equal(
        images.to_uint8(jnp.array([-1e9, -1.01, 1.01, 1e9, -jnp.inf, jnp.inf])),
        [0, 0, 255, 255, 0, 255],
    )
    x = RANDOM.uniform(-1, 1, 1000)
    gap = abs(np.asarray(images.to_uint8(jnp.asarray(x)), np.float64) - 127.5 * (x + 1))
    assert gap.max() < 0.5 + 1e-4


def some(n, height, width, channels):
    """Random images that have no white pixel, so that gutters are told apart."""
    return RANDOM.integers(0, 255, (n, height, width, channels), np.uint8)


@pytest.mark.parametrize(
    ("shape", "columns", "factor"),
    [
        ((5, 8, 8, 1), 3, 6),  # 48 / 8
        ((6, 5, 9, 3), 3, 10),  # 5 pixels: the least whole factor to 48 or more
        ((4, 48, 50, 4), 4, 1),
        ((1, 64, 64, 3), 1, 1),
        ((2, 8, 8, 1), 5, 6),  # more columns than images
    ],
)
def test_a_grid_holds_every_image_enlarged_by_a_whole_factor(shape, columns, factor):
    """Each pixel is a square of its colour; gutters and empty places are white."""
    given, gutter = some(*shape), 2
    n, height, width, channels = shape
    sheet = images.grid(given, columns)
    rows = -(-n // columns)
    step_down, step_right = height * factor + gutter, width * factor + gutter
    assert sheet.dtype == np.uint8
    assert sheet.shape == (rows * step_down + gutter, columns * step_right + gutter, channels)
    free = np.ones(sheet.shape[:2], bool)
    for i in range(n):
        top, left = gutter + i // columns * step_down, gutter + i % columns * step_right
        place = np.s_[top : top + height * factor, left : left + width * factor]
        np.testing.assert_array_equal(sheet[place], np.kron(given[i], np.ones((factor, factor, 1))))
        free[place] = False
    assert (sheet[free] == 255).all()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_png_comes_back(tmp_path, channels, mode):
    """Every value, in the file format that its name says; no partial file stays."""
    image = RANDOM.integers(0, 256, (5, 7, channels), np.uint8)
    images.save_png(tmp_path / "a.png", image)
    with Image.open(tmp_path / "a.png") as picture:
        assert (picture.format, picture.mode) == ("PNG", mode)
        np.testing.assert_array_equal(np.asarray(picture).reshape(image.shape), image)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_file_that_is_there_is_replaced(tmp_path):
    for level in (3, 200):
        images.save_png(tmp_path / "a.png", np.full((2, 2, 1), level, np.uint8))
    with Image.open(tmp_path / "a.png") as picture:
        assert np.asarray(picture).max() == 200


def test_npz_is_adms(tmp_path):
    """One array, arr_0, uint8 NHWC, without pickle: what guided-diffusion's evaluator reads."""
    given = some(3, 4, 5, 3)
    images.save_npz(tmp_path / "a.npz", given)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        assert stored.files == ["arr_0"]
        np.testing.assert_array_equal(stored["arr_0"], given)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
