"""--profile: what is traced opens elsewhere, and a wrong range is said before training begins."""

import gzip
import json

import jax
import pytest

from tests import tiny
from tests.data import homes
from vitdiff_jax.training.profiling import Profile


def spans(folder):
    """The steps that the one trace of a folder has a span for."""
    (path,) = folder.glob("plugins/profile/*/*.trace.json.gz")
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    return [int(e["args"]["step_num"]) for e in events if e.get("name") == "train"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, no_plots):
    """The flags of a finished run."""
    home = tmp_path_factory.mktemp("trained")
    quick = dict(model=tiny.WIDE, diffusion=tiny.UNIFORM)
    config = tiny.write(home / "tiny.py", train=dict(steps=6), **quick)
    flags = [config, f"--workdir={home / 'run'}"]
    assert tiny.call(*flags) == 0
    return flags


@pytest.mark.slow
def test_a_profile_has_the_names_of_the_models_parts(tmp_path):
    """Perfetto's file has a span for each step; TensorBoard's also names, without TensorFlow."""
    flag, workdir = tiny.write(tmp_path / "tiny.py", train=dict(steps=6)), tmp_path / "run"
    code, out, error = tiny.command(flag, f"--workdir={workdir}", "--profile=3:5")
    assert code == 0, error
    assert spans(workdir / "profile") == [3, 4, 5]
    (path,) = workdir.glob("profile/plugins/profile/*/*.xplane.pb")
    found = path.read_bytes()
    names = (b"train_step", b"/block_0/attention/", b"/block_1/feed_forward/")
    assert not [name for name in names if name not in found]
    assert f"profile in {workdir / 'profile'}: open it with Perfetto or TensorBoard" in out


@pytest.mark.slow
def test_a_run_that_goes_on_after_them_says_so(trained):
    """The same command again is no error: that is how a run goes on after a preemption."""
    code, out, error = homes.run(*trained, "--profile=3:5", "--config.train.steps=7")
    assert code == 0, error
    assert "no profile: steps 3 to 5 are already done, resuming at step 6\n" in out


@pytest.mark.parametrize(
    "text", ["x", "3", "3:", ":5", "5:3", "0:2", "1:2:3", "-1:2", "a:b", "²:3", "30:31"]
)
def test_what_is_no_range(tmp_path, text):
    """Or has steps that are never reached."""
    flag = tiny.write(tmp_path / "tiny.py")
    found = homes.run(flag, f"--workdir={tmp_path / 'run'}", f"--profile={text}")
    message = f"{text!r} is not of the form first:last"
    if text == "30:31":
        message = "30:31 is beyond config.train.steps=30"
    assert found[::2] == (2, f"error: --profile: {message}")
    assert not (tmp_path / "run").exists()


def test_a_profile_that_is_cut_short_is_written(tmp_path):
    """Of a run that stops in between, or begins there."""
    profile = Profile(range(3, 9), tmp_path)
    for step in (5, 6):
        with profile.begin(step):
            pass
        profile.end(step, None)
    assert not list(tmp_path.iterdir())
    profile.close()
    assert spans(tmp_path) == [5, 6]


def test_a_profile_that_cannot_be_written_does_not_end_a_run(tmp_path, monkeypatch, capsys):
    def stop_trace():
        raise jax.errors.JaxRuntimeError("no space left")

    profile, stop = Profile(range(1, 2), tmp_path), jax.profiler.stop_trace
    monkeypatch.setattr(jax.profiler, "stop_trace", stop_trace)
    with profile.begin(1):
        pass
    profile.end(1, None)
    assert capsys.readouterr().out == ("warning: the profile could not be written: no space left\n")
    stop()
