"""Scratches are found where they were drawn, at any scale, and hardly where there are none."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from vitdiff_jax.operators import scratches

RANDOM = np.random.default_rng(0)
AROUND = np.ones((3, 3))


def sky(height, width, noise=0.0):
    """A smooth picture [H, W, 3], with noise in each channel."""
    down, right = np.mgrid[:height, :width] / max(height, width)
    grey = 0.3 * np.sin(4 * down) + 0.3 * np.cos(3 * right + down)
    x = grey[..., None] + noise * RANDOM.standard_normal((height, width, 3))
    return x.astype(np.float32)


def drawn(shape, points, wide):
    """The coverage of pixels by a line, [H, W] in [0, 1]."""
    height, width = shape[:2]
    sheet = Image.new("L", (4 * width, 4 * height))
    scaled = [(4 * x * width, 4 * y * height) for x, y in points]
    ImageDraw.Draw(sheet).line(scaled, fill=255, width=round(4 * wide), joint="curve")
    return np.asarray(sheet.resize((width, height), Image.Resampling.BOX), np.float32) / 255


def quality(found, truth):
    """(precision, recall) of pixels, to a pixel."""
    near = [ndimage.binary_dilation(a, AROUND) for a in (found, truth)]
    return (found & near[1]).sum() / max(found.sum(), 1), (truth & near[0]).sum() / truth.sum()


@pytest.mark.parametrize("tone", [-0.9, 0.9])
@pytest.mark.parametrize(
    ("size", "wide", "noise"), [((120, 160), 1.5, 0.0), ((160, 120), 3, 0.1), ((600, 500), 8, 0.05)]
)
def test_strokes_are_found(size, wide, noise, tone):
    """One straight, one bent, thin and wide, bright and dark, of three percent of the pixels."""
    x, truth = sky(*size, noise), np.zeros(size, bool)
    for points in ([(0.1, 0.2), (0.8, 0.35)], [(0.3, 0.9), (0.5, 0.75), (0.75, 0.72), (0.9, 0.7)]):
        cover = drawn(size, points, wide)
        x = x * (1 - cover[..., None]) + tone * cover[..., None]
        truth |= cover > 0.5
    precision, recall = quality(scratches.find(x), truth)
    assert recall > 0.9
    assert precision > 0.6


def test_scratches_may_cross():
    size = (120, 120)
    ends = [(0.2, 0.2), (0.8, 0.8)], [(0.2, 0.8), (0.8, 0.2)]
    cover = np.maximum(*(drawn(size, points, 2) for points in ends))
    x = sky(*size) * (1 - cover[..., None]) - 0.9 * cover[..., None]
    assert quality(scratches.find(x), cover > 0.5)[1] > 0.9


def test_black_and_white_are_the_pictures_own():
    """A faded photograph has the scratches of the whole one, a negative those of the positive."""
    size = (120, 100)
    cover = drawn(size, [(0.1, 0.2), (0.8, 0.35)], 2)[..., None]
    x = (0.6 * sky(*size) - 0.3) * (1 - cover) + 0.9 * cover
    found = scratches.find(x)
    assert found.any()
    np.testing.assert_array_equal(scratches.find(-x), found)
    assert (scratches.find(0.3 * x + 0.4) != found).mean() < 1e-3


STRIPES = np.sign(np.sin(np.arange(100) / 3))[:, None] * np.ones(100)
NONE = {
    "sky": sky(100, 100),
    "noise": RANDOM.normal(0, 0.2, (100, 100, 3)),
    "one tone": np.full((100, 100, 1), 0.3),
    "an edge": np.where(np.arange(100) < 43, -0.5, 0.5)[:, None, None] * np.ones((100, 100, 1)),
    "a chequerboard": (STRIPES * STRIPES.T)[..., None],
    "stripes": STRIPES[..., None],
    "few pixels": RANDOM.uniform(-1, 1, (3, 5, 3)),
    "a thin strip": RANDOM.uniform(-1, 1, (20, 3000, 1)),
}


@pytest.mark.parametrize("name", NONE)
def test_nothing_is_found_where_there_is_nothing(name):
    assert not scratches.find(NONE[name]).any()
