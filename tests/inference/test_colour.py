"""Colours from a small picture: the guided filter, and that the grey stays what it was."""

import types

import numpy as np
import pytest

from vitdiff_jax.inference import colour, tasks
from vitdiff_jax.inference.restoring import Restored

RANDOM = np.random.default_rng(0)
ABOUT = {"method": "ddrm", "network_calls": 5, "seconds": 1.0, "tiles": 2, "memory": 7}


def grey(height=37, width=26):
    return RANDOM.uniform(-1, 1, (height, width)).astype(np.float32)


def reduced(picture, factor):
    return colour.reduced(picture, np.ones(picture.shape, bool), factor)[0]


def test_reduction_is_the_mean_of_what_is_known():
    picture, known = grey(8, 10), RANDOM.random((8, 10)) < 0.5
    known[:4, :4] = False
    found, seen = colour.reduced(picture, known, 4)
    assert found.shape == (2, 3)
    assert seen.tolist() == [[False, True, True], [True, True, True]]
    assert found[0, 0] == 0
    assert found[1, 2] == pytest.approx(picture[4:, 8:][known[4:, 8:]].mean(), abs=1e-6)


@pytest.mark.parametrize("factor", [2, 4, 5])
def test_the_guided_filter_is_exact_where_colours_are_affine_in_grey(factor):
    """He and Sun's fast guided filter without smoothing, also at borders that cut squares."""
    guide = grey()
    slopes, offsets = np.array([0.3, -0.2, 0.7]), np.array([0.1, 0.0, -0.4])
    low = reduced(guide, factor)
    found = colour.guided(guide, low, slopes * low[..., None] + offsets, factor, smoothness=0.0)
    np.testing.assert_allclose(found, slopes * guide[..., None] + offsets, atol=1e-5)


def test_smoothness_leaves_a_constant_and_the_mean_of_channels():
    guide, low = grey(), reduced(grey(), 4)
    flat = np.broadcast_to(np.array([0.2, -0.3]), (*low.shape, 2))
    np.testing.assert_allclose(
        colour.guided(guide, low, flat, 4),
        np.broadcast_to([0.2, -0.3], (*guide.shape, 2)),
        atol=1e-6,
    )
    values = RANDOM.standard_normal((*low.shape, 3))
    of_mean = colour.guided(guide, low, values.mean(-1, keepdims=True), 4)
    found = colour.guided(guide, low, values, 4).mean(-1, keepdims=True)
    np.testing.assert_allclose(found, of_mean, atol=1e-5)


def test_the_mean_of_the_channels_is_the_grey_that_is_known():
    """Also where strong colours would leave [-1, 1]; and no colours are no colours."""
    known = np.concatenate([grey(), [[-1.0] * 26, [1.0] * 26]]).astype(np.float32)[..., None]
    strong = RANDOM.uniform(-1, 1, (10, 7, 3))
    found = colour.coloured(known, strong, 4)
    np.testing.assert_allclose(found.mean(-1, keepdims=True), known, atol=1e-6)
    assert abs(found).max() <= 1 + 1e-6
    assert found.std(-1).mean() > 0.05
    pale = np.repeat(strong[..., :1], 3, -1)
    np.testing.assert_allclose(colour.coloured(known, pale, 4), np.repeat(known, 3, -1), atol=1e-6)


@pytest.mark.parametrize(
    ("task", "picture", "model", "factor"),
    [
        ("colourise", (40, 72, 3), (8, 8, 3), 5),
        ("colourise", (9, 200, 1), (8, 8, 3), 1),
        ("denoise", (40, 72, 3), (8, 8, 3), 1),
        ("old-photo", (40, 72, 3), (8, 8, 3), 1),
        ("colourise", (40, 72, 1), (8, 8, 1), 1),
    ],
)
def test_the_model_sees_the_shorter_side(task, picture, model, factor):
    x = RANDOM.uniform(-1, 1, picture).astype(np.float32)
    problem = tasks.from_measurement(x, model[2], task, noise_std=0.0)
    assert colour.factor_of(problem, model) == factor


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("hole", [False, True])
def test_colours_come_from_the_small_picture_and_grey_from_the_whole_one(noise, hole):
    """Of a noisy or broken one the grey is restored first, by a model of colours."""
    x, missing = grey(16, 24)[..., None], np.zeros((16, 24), bool)
    missing[:5, :9] = hole
    problem = tasks.from_measurement(x, 3, "colourise", missing if hole else None, noise)
    asked, told = [], []

    def restore(part, method, cond, seeds, progress):
        asked.append(part)
        progress(7, 7)
        samples = np.full((len(seeds), *part.shape[:2], part.channels), 0.25, np.float32)
        if part.channels == 3:
            samples += np.array([0.1, 0.0, -0.1], np.float32)
        return Restored(samples, x, dict(ABOUT, task=part.task))

    stub = types.SimpleNamespace(restore=restore)
    report = lambda *counts: told.append(counts)  # noqa: E731
    found = colour.restore(stub, problem, None, {}, np.array([3, 4]), 4, report)
    assert told == [(7, 7), (14, 14)][: len(asked)]
    assert found.samples.shape == (2, 16, 24, 3)
    small = asked[0]
    assert (small.shape, small.noise_std) == ((4, 6, 3), noise / 4)
    assert small.y.shape == (1, 4, 6, 1)
    if noise or hole:
        whole = asked[1]
        assert (whole.y.shape, whole.channels, whole.noise_std) == ((1, 16, 24, 3), 1, noise)
        wanted = np.full((16, 24, 1), 0.25)
    else:
        assert len(asked) == 1
        wanted = x
    for sample in found.samples:
        np.testing.assert_allclose(sample.mean(-1, keepdims=True), wanted, atol=1e-6)
    assert found.about["network_calls"] == 5 * len(asked)
    assert found.about["noise_std"] == noise
