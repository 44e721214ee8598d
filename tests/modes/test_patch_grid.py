"""The patch grid where it is measured: of files, of a model, during training, and in the report."""

import json
import types

import numpy as np
import pytest

from tests import tiny
from vitdiff_jax.data import digits, pipeline
from vitdiff_jax.evaluation import patch_grid
from vitdiff_jax.evaluation.metric import Batch, Setting
from vitdiff_jax.experiment import build
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.inference import evaluator
from vitdiff_jax.inference.sweep import Row
from vitdiff_jax.modes import evaluate, report
from vitdiff_jax.runtime import parallel
from vitdiff_jax.training import monitor

METRIC = dict(evaluate=dict(metrics=("patch_grid",)))


@pytest.fixture(scope="module")
def real():
    return pipeline.stacked(digits.dataset().train)["image"]


def with_grid(images):
    """Every other block of 4x4 pixels is brighter."""
    rows, columns = np.mgrid[:8, :8] // 4
    return np.clip(images + 60 * ((rows + columns) % 2)[..., None], 0, 255).astype(np.uint8)


def evaluated(capsys, workdir, flag, images):
    """(exit code, evaluation.json, warnings, stderr) of images evaluated in place of samples."""
    workdir.mkdir(exist_ok=True)
    np.savez(workdir / "samples.npz", arr_0=images)
    code = tiny.call(
        flag, f"--workdir={workdir}", "--mode=evaluate", f"--samples={workdir / 'samples.npz'}"
    )
    out, err = capsys.readouterr()
    warnings = [line for line in out.splitlines() if line.startswith("warning")]
    path = workdir / "evaluation.json"
    return code, json.loads(path.read_text()) if path.exists() else None, warnings, err


def test_a_grid_is_said_and_stands_in_the_report(tmp_path, real, capsys):
    """And real images have none."""
    flag = tiny.write(tmp_path / "tiny.py", **METRIC)
    _, plain, warnings, _ = evaluated(capsys, tmp_path / "plain", flag, real)
    found = plain["rows"][0]["results"]["patch_grid/4px"]
    assert found["low"] < found["value"] < found["high"]
    assert warnings == plain["warnings"] == []
    assert plain["real_images"]["results"]["patch_grid/4px"]["value"] == pytest.approx(1, abs=0.2)
    _, grid, warnings, _ = evaluated(capsys, tmp_path / "grid", flag, with_grid(real))
    found = grid["rows"][0]["results"]["patch_grid/4px"]
    assert found["value"] > found["high"]
    (line,) = warnings
    band = f"{found['value']:.3f} is outside the band of real images, {found['low']:.3f} to"
    assert line.startswith(f"warning: patch_grid/4px: {band}")
    assert [line] == [f"warning: {said}" for said in grid["warnings"]]
    report.write(tmp_path / "grid")
    assert grid["warnings"][0] in (tmp_path / "grid" / "report.html").read_text()


def test_two_images_have_no_covariance_to_doubt(tmp_path, real, capsys):
    flag = tiny.write(tmp_path / "tiny.py", **METRIC)
    code, _, warnings, _ = evaluated(capsys, tmp_path / "run", flag, real[:2])
    assert code == 0
    assert not [line for line in warnings if "covariance" in line]


@pytest.mark.parametrize(
    ("changes", "images", "why"),
    [
        (dict(model=dict(name="unet")), (8, 8, 1), "needs a model with patches"),
        (dict(model=dict(patch=8)), (8, 8, 1), "a patch is the whole image"),
        ({}, (6, 8, 1), "patches of 4 pixels do not divide the 6x8 images"),
        ({}, (8, 16, 1), "samples are 8x16 pixels, real images 8x8"),
    ],
)
def test_where_it_does_not_apply(tmp_path, capsys, changes, images, why):
    random = np.random.default_rng(0)
    flag = tiny.write(tmp_path / "tiny.py", **METRIC, **changes)
    samples = random.integers(0, 256, (4, *images), np.uint8)
    code, found, _, error = evaluated(capsys, tmp_path / "run", flag, samples)
    assert (code, found, error.count("\n")) == (2, None, 1)
    assert error.startswith("error: config.evaluate.metrics: patch_grid")
    assert why in error


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (dict(model=dict(name="unet", width=8)), "needs a model with patches"),
        (dict(model=dict(patch=8)), "a patch is the whole image"),
    ],
)
def test_training_refuses_it_at_the_start(tmp_path, capsys, changes, why):
    log = dict(evaluate_every=10)
    flag = tiny.write(tmp_path / "tiny.py", log=log, **METRIC, **changes)
    assert tiny.call(flag, f"--workdir={tmp_path / 'run'}") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: config.evaluate.metrics: patch_grid")
    assert why in error
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.usefixtures("plain")
def test_a_model_without_patches_is_refused_before_it_samples(workdir, capsys):
    flags = [f"--workdir={workdir}", "--mode=evaluate", "--config.evaluate.metrics=patch_grid"]
    assert tiny.call(*flags) == 2
    assert "patch_grid needs a model with patches" in capsys.readouterr().err


def test_training_says_each_ema_that_has_a_grid(tmp_path, real, capsys, monkeypatch):
    settings = config_lib.complete(tiny.config(log=dict(evaluate_images=99), **METRIC))
    data = digits.dataset()
    made = evaluator.Evaluator(settings, tmp_path, parallel.make_mesh(), data)
    images = {"0.99": with_grid(real), "0.5": real}
    monkeypatch.setattr(
        evaluator, "sampled",
        lambda sample, *_: lambda first: [Batch(sample({}, 99, first))],
    )  # fmt: skip
    written = {}
    training = types.SimpleNamespace(
        config=settings, pictures=data, _sample=lambda name, seeds, cond: images[name][seeds]
    )
    metrics = types.SimpleNamespace(write=lambda step, values: written.update(values))
    monitor.Monitor._evaluate(training, 10, {n: n for n in images}, made, metrics)
    values = {name: written[f"patch_grid/4px/ema{name}/value"] for name in images}
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" is ")[0] for line in lines if line.startswith("warning")] == [
        f"warning: step 10, EMA 0.99: patch_grid/4px: {values['0.99']:.3f}"
    ]
    assert written["patch_grid/4px/ema0.5/low"] < values["0.5"]


def test_the_report_shows_the_band(tmp_path):
    """During training: a line for each EMA, and the two ends of the band."""
    line = {"step": 1}
    for ema in ("0.9", "0.99"):
        for key, value in dict(value=1.2, low=0.9, high=1.1, energy=2.0).items():
            line[f"patch_grid/4px/ema{ema}/{key}"] = value
    lines = [line, line | {"step": 2}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    report.write(tmp_path)
    (alt,) = [
        text for text in (tmp_path / "report.html").read_text().split('"')
        if text.startswith("Patch_grid/4px: ")
    ]  # fmt: skip
    for name in ("EMA 0.9 ", "EMA 0.99 ", "real images, low ", "real images, high "):
        assert name in alt


@pytest.mark.parametrize(
    ("changes", "side"),
    [
        ({}, 4), (dict(model=dict(name="dit", patch=1), latent=dict(factor=8)), 8),
        (dict(model=dict(name="uvit", patch=2)), 2), (dict(model=dict(name="unet")), None),
    ],
)  # fmt: skip
def test_side_of_a_patch_is_in_pixels_of_the_images(changes, side):
    assert build.patch_of(config_lib.complete(tiny.config(**changes))) == side


def test_a_line_on_a_row_of_a_sweep_names_what_differs():
    rows = [Row(1.5, 0.0, 1.0, 0.99, None, "heun", steps) for steps in (8, 25)]
    assert [evaluate._named(row, rows) for row in rows] == ["8 steps, ", "25 steps, "]
    assert evaluate._named(rows[0], rows[:1]) == ""


def test_the_best_row_of_a_sweep_is_the_one_nearest_to_real_images():
    metric = patch_grid.Metric(Setting(digits.dataset, parallel.make_mesh(), patch=4))
    rows = [{"results": {metric.name: {"value": v}}} for v in (0.2, 1.3, 0.9, np.inf, np.nan)]
    assert evaluate._best(metric, rows) == 2
