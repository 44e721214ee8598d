"""Averages of any width, made from those that were kept, against sums over all steps."""

import dataclasses
import functools

import jax
import jax.flatten_util
import numpy as np
import pytest

import vitdiff_jax
from tests import tiny
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment import ema as ema_lib
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.modes import evaluate

WIDTHS = (0.05, 0.10)
STEPS = 400


def weights(width, steps):
    """What the update's average after `steps` steps gives to the parameters of each."""
    left = 1 - 1 / np.arange(1, steps + 1)
    left = left ** (ema_lib.gamma(width) + 1)
    return (1 - left) * np.append(np.cumprod(left[:0:-1])[::-1], 1)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.15, 0.25, ema_lib.WIDEST])
def test_the_width_is_that_of_the_weights(width):
    """Over many steps the standard deviation of step / steps is the width."""
    given, time = weights(width, 20_000), np.arange(1, 20_001) / 20_000
    assert given.sum() == pytest.approx(1)
    assert np.sqrt(given @ time**2 - (given @ time) ** 2) == pytest.approx(width, rel=1e-3)
    np.testing.assert_allclose(given[1:] / given[-1], time[1:] ** ema_lib.gamma(width), atol=1e-3)


@functools.cache
def path_and_averages():
    """Parameters that wander, [STEPS, 20], and the averages of WIDTHS after each step."""
    path = np.cumsum(np.random.default_rng(0).standard_normal((STEPS, 20)), 0)
    kept = {}
    for width in WIDTHS:
        mean = np.zeros(20)
        for step, params in enumerate(path):
            left = float(ema_lib.decay(ema_lib.width_name(width), np.float64(step)))
            mean = left * mean + (1 - left) * params
            kept[step + 1, width] = mean
    return path, kept


@pytest.mark.parametrize("width", [0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2])
def test_a_blend_is_the_average_over_all_steps(width):
    path, kept = path_and_averages()
    places = [(n, w) for n in range(25, STEPS + 1, 25) for w in WIDTHS]
    shares, left = ema_lib.posthoc_weights(places, STEPS, width)
    found = sum(share * kept[place] for share, place in zip(shares, places))
    wanted = weights(width, STEPS) @ path
    assert left < 0.05
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted - path[-1])
    assert error < (1e-6 if width in WIDTHS else 0.03)


def test_the_distance_that_is_said_is_that_of_the_weights():
    places = [(n, w) for n in range(100, STEPS + 1, 100) for w in WIDTHS]
    shares, left = ema_lib.posthoc_weights(places, STEPS, 0.02)
    given = [np.pad(weights(w, n), (0, STEPS - n)) for n, w in places]
    wanted = weights(0.02, STEPS)
    far = np.linalg.norm(shares @ given - wanted) / np.linalg.norm(wanted)
    assert left == pytest.approx(far, rel=0.1)


def test_nothing_later_is_blended():
    for places in ([], [(5, 0.05)]):
        with pytest.raises(ValueError, match="no snapshots up to step 4"):
            ema_lib.posthoc_weights(places, 4, 0.05)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, plain):
    """Every step's parameters (decay 0) and two averages."""
    home = tmp_path_factory.mktemp("averages")
    config = tiny.config(
        model=tiny.PLAIN,
        train=dict(steps=10, ema=(0.0,), ema_widths=WIDTHS),
        checkpoint=dict(every=1, keep_every=1),
    )
    vitdiff_jax.fit(config, home)
    return home


def params_of(workdir, **which):
    return jax.tree.map(np.asarray, vitdiff_jax.load(workdir, **which).params)


@pytest.mark.slow
def test_a_trained_model_of_any_width(workdir):
    model = vitdiff_jax.load(workdir)
    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), model.params
    )
    checkpoints = vitdiff_jax.inference.loading.Checkpoints(workdir / "checkpoints", read_only=True)
    path = [checkpoints.restore_emas(step, ["0.0"], shapes)["0.0"] for step in range(1, 11)]
    checkpoints.close()
    flat = np.stack([jax.flatten_util.ravel_pytree(params)[0] for params in path])
    for width in (0.05, 0.07):
        exact = weights(width, 10) @ flat
        found = jax.flatten_util.ravel_pytree(params_of(workdir, ema_width=width))[0]
        moved = np.linalg.norm(exact - flat[-1])
        assert np.linalg.norm(exact - found) < (1e-4 if width == 0.05 else 0.05) * moved


@pytest.mark.slow
def test_the_config_chooses_the_width_or_several(workdir):
    config = config_lib.read(workdir / "config.json", ["--config.sample.ema_width=0.07"])
    found, wanted = params_of(workdir, config=config), params_of(workdir, ema_width=0.07)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    (row,) = evaluate.rows(config)
    assert row.which_ema() == {"ema": None, "ema_width": 0.07}
    flags = ["--config.evaluate.sweep.ema_width=(0.05,0.08)"]
    config = config_lib.read(workdir / "config.json", flags)
    first, second = evaluate.rows(config)
    assert (first.ema, first.ema_width, second.ema_width) == (None, 0.05, 0.08)
    assert second.differences(first) == {"EMA width 0.08": "emawidth0.08"}
    assert dataclasses.replace(first, ema_width=0.08) == second


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.sample.ema_width=0.4"], "sample.ema_width: 0.4 is not in"),
        (["--config.train.ema_widths=(0.0,)"], "train.ema_widths: 0.0 is not in"),
        (
            ["--config.evaluate.sweep.ema_width=(0.1,)", "--config.evaluate.sweep.ema=(0.0,)"],
            "config.evaluate.sweep.ema_width: sweep either",
        ),
        (["--config.sample.ema_width=0.001"], "the error is .*; keep more checkpoints"),
        (
            ["--config.train.ema_widths=()", "--config.sample.ema_width=0.1"],
            "sample.ema_width: post-hoc EMAs need stored ones; train with",
        ),
    ],
)
def test_impossible_widths_are_one_line(workdir, flags, message):
    def use():
        config = config_lib.read(workdir / "config.json", flags)
        vitdiff_jax.experiment.build.build(config, (8, 8, 1), {})
        evaluate.rows(config)
        vitdiff_jax.load(workdir, config)

    with pytest.raises(ConfigError, match=message):
        use()
