"""A denoiser, schedule, grid and sampler of someone else's package, through the command."""

import json
import sys

import numpy as np
import pytest

from tests import tiny

THEIRS = {
    "net.py": '''
import flax.linen as nn
import jax.numpy as jnp

from vitdiff_jax.models.conditions import Sizes


class Model(nn.Module):
    """A convolution that is told the time."""

    conditions: Sizes
    width: int = 4

    def check(self, shape):
        if shape[0] < self.width:
            raise ValueError(f"width: {self.width} is more than the image has rows")

    @nn.compact
    def __call__(self, x, time, cond, keys=None):
        h = nn.Conv(self.width, (3, 3))(x) + nn.Dense(self.width)(time[:, None])[:, None, None]
        return nn.Conv(x.shape[-1], (3, 3))(nn.silu(h)).astype(jnp.float32)
''',
    "flow.py": '''
import dataclasses

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Square:
    """alpha = 1 - t^2, sigma = t^2."""

    def alpha_sigma(self, t):
        return 1 - t**2, t**2

    def t_from_logsnr(self, logsnr):
        return jnp.sqrt(1 / (1 + jnp.exp(logsnr / 2)))

    def network_input(self, t):
        return jnp.ones_like(t), t


def halving(schedule, steps, ratio=0.5):
    return np.append(ratio ** np.arange(steps), 0.0)
''',
    "jump.py": '''
import jax.numpy as jnp

from vitdiff_jax.diffusion.schedules import per_image
from vitdiff_jax.samplers import sampling_loop


def nfe(steps, **_):
    return steps


def sample(denoise, schedule, times, x, keys, shrink=1.0):
    """The estimate, and as much noise as is left."""

    def step(x, t, s, i):
        x_hat, (alpha, sigma) = denoise(x, t), schedule.alpha_sigma(t)
        eps = (x - per_image(alpha) * x_hat) / per_image(sigma)
        alpha, sigma = schedule.alpha_sigma(s)
        return per_image(alpha) * x_hat + per_image(shrink * sigma) * eps

    return sampling_loop(step, denoise, schedule, times, x)
''',
}


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """The package `theirs`, where Python finds it."""
    package = tmp_path / "theirs"
    package.mkdir()
    for name, text in THEIRS.items():
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "theirs"]:
        del sys.modules[name]


@pytest.fixture
def flag(theirs, tmp_path):
    """The --config flag of a run that is made of it."""
    config = tiny.config(
        diffusion=dict(schedule=dict(name="theirs.flow.Square")),
        sample=dict(
            sampler=dict(name="theirs.jump", shrink=0.9), grid=dict(name="theirs.flow.halving"),
            steps=3, batch=8,
        ),
        evaluate=dict(metrics=("pixel_frechet",), images=8),
    ) | dict(model=dict(name="theirs.net", width=6))  # fmt: skip
    path = tmp_path / "run.py"
    path.write_text(f"def get_config():\n    return {config!r}\n")
    return f"--config={path}"


@pytest.mark.slow
def test_a_denoiser_a_schedule_a_grid_and_a_sampler_from_outside(flag, tmp_path, capsys):
    """They train, draw and are measured; no file of the package knows their names."""
    workdir = f"--workdir={tmp_path / 'run'}"
    assert tiny.call(flag, workdir, "--config.train.steps=20") == 0
    losses = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert np.isfinite([row["loss"] for row in losses if "loss" in row]).all()
    assert tiny.call(flag, workdir, "--mode=sample", "--n=3", "--npz") == 0
    assert np.load(next(tmp_path.glob("run/samples/*.npz")))["arr_0"].shape == (3, 8, 8, 1)
    sweep = "--config.evaluate.sweep.sampler=('theirs.jump','heun')"
    assert tiny.call(flag, workdir, "--mode=evaluate", sweep) == 0
    rows = json.loads((tmp_path / "run/evaluation.json").read_text())["rows"]
    assert [row["network_calls"] for row in rows] == [3, 5]


def test_their_options_are_checked_as_ours_are(flag, tmp_path, capsys):
    """Misspelt ones by name, impossible ones by the denoiser's own words."""
    workdir = f"--workdir={tmp_path / 'run'}"
    assert tiny.call(flag, workdir, "--config.model.widht=6") == 2
    assert "did you mean config.model.width?" in capsys.readouterr().err
    assert tiny.call(flag, workdir, "--config.model.width=9") == 2
    assert "config.model.width: 9 is more than the image has rows" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
