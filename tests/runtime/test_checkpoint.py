"""Checkpoints: going on is as if never stopped, damage is noticed, nothing is lost."""

import re
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import slow_digits, tiny
from vitdiff_jax.runtime.checkpoint import CheckpointError, Checkpoints
from vitdiff_jax.training import monitor
from vitdiff_jax.training.step import TrainState

SLOW = dict(  # 80 ms a step in a process of its own, so that there is a middle to stop in
    model=tiny.WIDE,
    data=dict(name="tests.slow_digits"),
    diffusion=tiny.UNIFORM,
    train=dict(steps=30, ema=(0.99, 0.5)),
    checkpoint=dict(every=10),
    log=dict(every=1),
)
slow = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _quick_here(no_plots):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slow_digits, "SECONDS", 0)
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("config") / "tiny.py", **SLOW)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, config):
    """The workdir of 30 steps in one go, with checkpoints at 10, 20 and 30."""
    workdir = tmp_path_factory.mktemp("runs") / "unbroken"
    assert tiny.call(config, f"--workdir={workdir}") == 0
    return workdir


@pytest.mark.parametrize("mode", ["train", "sample"])
def test_all_damaged_stops_the_command(trained, tmp_path, config, capsys, mode):
    workdir = shutil.copytree(trained, tmp_path / "run")
    for step in (10, 20, 30):
        truncate(workdir / "checkpoints" / str(step) / "checksums.json")
    before = tiny.files(workdir)
    assert tiny.call(config, f"--workdir={workdir}", f"--mode={mode}") == 1
    out, err = capsys.readouterr()
    assert re.findall(r"checkpoint (\d+) is damaged", out) == ["30", "20", "10"]
    assert err.startswith(f"error: all checkpoints in {workdir / 'checkpoints'} are damaged; move")
    assert err.count("\n") == 1
    assert tiny.files(workdir) == before


@pytest.fixture(scope="module")
def unbroken(trained):
    """What they save."""
    return tiny.saved(tiny.config(**SLOW), trained)


def goes_on(config, workdir, start, unbroken, capsys):
    """The same command runs to the same end from there; what was logged stands there once."""
    capsys.readouterr()
    assert tiny.call(config, f"--workdir={workdir}") == 0
    assert f"resuming at step {start} of 30\n" in capsys.readouterr().out
    assert tiny.logged(workdir) == list(range(1, 31))
    tiny.assert_same(tiny.saved(tiny.config(**SLOW), workdir), unbroken)


@slow
def test_a_killed_run_goes_on_bitwise(tmp_path, config, unbroken, capsys):
    with tiny.started("-m", "vitdiff_jax.main", config, f"--workdir={tmp_path}") as process:
        tiny.until((tmp_path / "checkpoints" / "10").exists, process)
        tiny.until(lambda: len(tiny.logged(tmp_path)) > 11, process)
        process.kill()
        process.wait()
    assert 11 < len(tiny.logged(tmp_path)) < 30
    goes_on(config, tmp_path, 10, unbroken, capsys)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=slow)], ids=["SIGTERM", "Ctrl-C"]
)
def test_a_stopped_run_saves_where_it_is_and_goes_on_bitwise(
    tmp_path, config, unbroken, capsys, monkeypatch, number
):
    """Between two checkpoints. Whoever had handled the signal before does so again afterwards."""
    handler, look = signal.getsignal(number), monitor.Monitor.after_step

    def at_step_4(self, step, *rest):
        look(self, step, *rest)
        if step == 4:
            signal.raise_signal(number)

    monkeypatch.setattr(monitor.Monitor, "after_step", at_step_4)
    assert tiny.call(config, f"--workdir={tmp_path}") == 75
    assert signal.getsignal(number) is handler
    said = "stopped by a signal at step 5, saved; run the same command to resume"
    assert capsys.readouterr().out.splitlines()[-1] == said
    assert tiny.logged(tmp_path) == [1, 2, 3, 4, 5]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["5"]
    monkeypatch.undo()
    goes_on(config, tmp_path, 5, unbroken, capsys)


def test_the_comparison_covers_everything(unbroken):
    """Parameters, both moments of Adam, both averages, the step; each of them has moved."""
    assert unbroken[".step"] == 30
    parts = [".params['head']['kernel']", ".ema['0.99']['head']['kernel']",
             ".ema['0.5']['head']['kernel']"]  # fmt: skip
    parts += [name for name in unbroken if name.endswith("['head']['kernel']") and "u[" in name]
    assert len(parts) == 5, unbroken.keys()
    assert len({unbroken[name].tobytes() for name in parts}) == 5
    assert all(np.any(unbroken[name]) for name in parts)


def state(step, size=300):
    """A small state whose arrays depend on the step."""
    params = {"kernel": jnp.arange(size) + 0.25 * step, "bias": jnp.full(3, 1.0 * step)}
    moments = optax.adamw(1e-3).init(params)
    ema = {"0.9": jax.tree.map(lambda a: a + 1, params), "0.99": jax.tree.map(jnp.negative, params)}
    return TrainState(jnp.int32(step), jnp.int32(0), params, moments, ema)


def shapes(tree):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


def save(directory, *steps, **options):
    checkpoints = Checkpoints(directory, **({"keep": 9} | options))
    for step in steps:
        checkpoints.save(step, state(step), {"step": step})
    checkpoints.close()


def assert_holds(checkpoints, step):
    """All that was saved at this step is there, unchanged."""
    restored = checkpoints.restore(step, shapes(state(0)))
    tiny.assert_same(tiny.arrays(restored), tiny.arrays(state(step)))
    assert checkpoints.meta(step) == {"step": step}
    for name, params in state(step).ema.items():
        found = checkpoints.restore_emas(step, [name], shapes(params))[name]
        tiny.assert_same(tiny.arrays(found), tiny.arrays(params))


def largest(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path, place=0.5):
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {  # what is done to a checkpoint's directory, and the file that must be named
    "a bit of an array": lambda d: flip(largest(d / "state" / "d")) or "state/d/",
    "the first bit": lambda d: flip(largest(d / "state" / "d"), 0) or "state/d/",
    "a bit of an average": lambda d: flip(largest(d / "ema" / "d")) or "ema/d/",
    "half an array": lambda d: truncate(largest(d / "state" / "d")) or "state/d/",
    "no array": lambda d: largest(d / "state" / "d").unlink() or "state/d/",
    "no averages": lambda d: shutil.rmtree(d / "ema") or "ema/",
    "garbled tree": lambda d: (d / "state" / "_METADATA").write_text("{") and "state/_METADATA",
    "garbled meta": lambda d: (d / "meta" / "metadata").write_text("{}") and "meta/metadata",
    "no sums": lambda d: (d / "checksums.json").unlink() or "checksums.json",
    "half the sums": lambda d: truncate(d / "checksums.json") or "checksums.json",
    "other sums": lambda d: (d / "checksums.json").write_text("[]") and "checksums.json",
    "a bit of the sums": lambda d: flip(d / "checksums.json", 0.9) or "",
}
QUICK = {"a bit of an array", "no averages", "garbled meta", "no sums"}


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Checkpoints 10, 20 and 30."""
    directory = tmp_path_factory.mktemp("three") / "checkpoints"
    save(directory, 10, 20, 30)
    return directory


@pytest.fixture
def copy(three, tmp_path):
    return shutil.copytree(three, tmp_path / "checkpoints")


def test_undamaged_checkpoints_are_read_back(three, tmp_path):
    assert Checkpoints(tmp_path).newest(set_aside=True) is None
    said = []
    checkpoints = Checkpoints(three, keep=9, report=said.append)
    assert checkpoints.newest() == 30
    for step in (10, 20, 30):
        assert_holds(checkpoints, step)
    assert said == []


@pytest.mark.parametrize(
    "kind",
    [*sorted(QUICK), *(pytest.param(kind, marks=slow) for kind in DAMAGE if kind not in QUICK)],
)
def test_damage_is_noticed_and_the_one_before_is_used(copy, kind):
    file = DAMAGE[kind](copy / "30")
    damaged = tiny.files(copy / "30")
    said = []
    checkpoints = Checkpoints(copy, read_only=True, report=said.append)
    assert checkpoints.newest() == 20
    assert len(said) == 1
    assert said[0].startswith("checkpoint 30 is damaged (")
    assert file in said[0]
    assert "\n" not in said[0]
    assert tiny.files(copy / "30") == damaged  # looking changes nothing

    checkpoints = Checkpoints(copy, keep=9, report=said.append)
    assert checkpoints.newest(set_aside=True) == 20
    assert said[1:] == said[:1]
    assert_holds(checkpoints, 20)
    checkpoints.save(30, state(30), {"step": 30})
    checkpoints.close()
    assert tiny.files(copy / "30.damaged") == damaged  # for a person to look at
    checkpoints = Checkpoints(copy, keep=9, report=said.append)
    assert checkpoints.newest() == 30
    assert_holds(checkpoints, 30)
    assert len(said) == 2


def test_what_orbax_writes_beside_does_not_matter(copy):
    """Its file of times is not summed, being written last; without it all is read as well."""
    (copy / "30" / "_CHECKPOINT_METADATA").write_text("garbled")
    said = []
    checkpoints = Checkpoints(copy, keep=9, report=said.append)
    assert checkpoints.newest(set_aside=True) == 30
    assert_holds(checkpoints, 30)
    assert said == []


def test_the_same_step_can_be_damaged_twice(copy):
    for name in ("30.damaged", "30.damaged2"):
        truncate(largest(copy / "30"))
        checkpoints = Checkpoints(copy, keep=9)
        assert checkpoints.newest(set_aside=True) == 20
        assert (copy / name).is_dir()
        checkpoints.save(30, state(30), {"step": 30})
        checkpoints.close()
    names = sorted(path.name for path in copy.iterdir())
    assert names == ["10", "20", "30", "30.damaged", "30.damaged2"]


@slow
def test_a_save_killed_half_way_leaves_nothing_visible(copy):
    """The process dies when all files are written, but before the checkpoint is made visible."""
    program = """
        import os, pathlib, sys
        from tests.runtime import test_checkpoint
        from vitdiff_jax.runtime.checkpoint import Checkpoints
        Checkpoints._write_checksums = lambda self: os._exit(7)
        test_checkpoint.save(pathlib.Path(sys.argv[1]), 40)
    """
    with tiny.started("-c", textwrap.dedent(program), copy) as process:
        process.communicate(timeout=120)
    assert process.returncode == 7
    unfinished = [path.name for path in copy.iterdir() if path.name.startswith("40")]
    assert unfinished != []
    assert "40" not in unfinished
    said = []
    checkpoints = Checkpoints(copy, keep=9, report=said.append)
    assert checkpoints.newest(set_aside=True) == 30
    assert said == []
    checkpoints.save(40, state(40), {"step": 40})
    checkpoints.close()
    assert sorted(path.name for path in copy.iterdir()) == ["10", "20", "30", "40"]
    assert_holds(Checkpoints(copy, keep=9), 40)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (dict(keep=2), [40, 50]),
        (dict(keep=1, keep_every=20), [20, 40, 50]),
        pytest.param(dict(keep=1), [50], marks=slow),
        pytest.param(dict(keep=2, keep_every=30), [30, 40, 50], marks=slow),
        pytest.param(dict(keep=9), [10, 20, 30, 40, 50], marks=slow),
    ],
    ids=str,
)
def test_retention(tmp_path, options, kept):
    save(tmp_path / "checkpoints", 10, 20, 30, 40, 50, **options)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == kept
    checkpoints = Checkpoints(tmp_path / "checkpoints", **options)
    for step in kept:
        assert checkpoints._damage(step) is None
    assert_holds(checkpoints, kept[0])


def test_what_is_saved_may_change_meanwhile(tmp_path):
    """The training step overwrites the buffers of the state while the files are written."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=9)
    change = jax.jit(lambda s: jax.tree.map(lambda a: a * 0, s), donate_argnums=0)
    saved, wanted = state(10, 2**20), tiny.arrays(state(10, 2**20))
    checkpoints.save(10, saved, {})
    jax.block_until_ready(change(saved))
    checkpoints.close()
    restored = Checkpoints(tmp_path / "checkpoints").restore(10, shapes(state(0, 2**20)))
    tiny.assert_same(tiny.arrays(restored), wanted)


def test_a_checkpoint_of_another_model_is_named(copy):
    checkpoints = Checkpoints(copy, keep=9)
    wider = state(0, size=301)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.restore(30, shapes(wider))
    assert str(caught.value).endswith("is (300,) there and (301,) here")
    assert "kernel" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"kernel is \(300,\) there and \(301,\) here"):
        checkpoints.restore_emas(30, ["0.9"], shapes(wider.ema["0.9"]))
    more = state(0).replace(params=state(0).params | {"new": jnp.zeros(2)})
    with pytest.raises(CheckpointError, match=r"params/new is absent there and \(2,\) here"):
        checkpoints.restore(30, shapes(more))
    with pytest.raises(CheckpointError, match=r"checkpoint 30 has no EMA 0.5, only 0.9, 0.99"):
        checkpoints.restore_emas(30, ["0.5"], shapes(state(0).params))


@pytest.fixture
def damaged(trained, tmp_path):
    """The same, but the last checkpoint is damaged."""
    workdir = shutil.copytree(trained, tmp_path / "run")
    flip(largest(workdir / "checkpoints" / "30" / "state" / "d"))
    return workdir


def test_training_goes_on_before_the_damage(damaged, config, unbroken, capsys):
    assert tiny.call(config, f"--workdir={damaged}") == 0
    out = capsys.readouterr().out
    assert out.count("checkpoint 30 is damaged (") == 1
    assert "resuming at step 20 of 30" in out
    names = {path.name for path in (damaged / "checkpoints").iterdir()}
    assert names == {"10", "20", "30", "30.damaged"}
    tiny.assert_same(tiny.saved(tiny.config(**SLOW), damaged), unbroken)


@slow
def test_where_nothing_more_can_be_written_what_was_saved_stays(trained, tmp_path, config, capsys):
    """Files of 12 KiB at most stand in for a full disk: Orbax meets the same kind of error."""
    workdir = shutil.copytree(trained, tmp_path / "run")
    flags = [config, f"--workdir={workdir}", "--config.train.steps=35"]
    limit = ["bash", "-c", 'ulimit -f 12; exec "$@"', "-"]
    limited = subprocess.run(
        [*limit, sys.executable, "-m", "vitdiff_jax.main", *flags],
        cwd=tiny.REPOSITORY, env=tiny.environment(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert limited.returncode == 1
    said = [line for line in limited.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1  # among what Orbax says of each array
    assert said[0].startswith(f"error: cannot write to {workdir / 'checkpoints'}: ")
    assert "File too large" in said[0]
    assert tiny.call(*flags) == 0
    assert "resuming at step 30 of 35" in capsys.readouterr().out
    assert (workdir / "checkpoints" / "35").is_dir()


@pytest.mark.parametrize("mode", ["train", "sample"])
def test_a_workdir_with_another_models_checkpoints(trained, tmp_path, capsys, mode):
    """Someone copied the checkpoints of a run of width 64 into one of width 32."""
    flag = tiny.write(tmp_path / "wide.py", **SLOW | dict(model=tiny.WIDE | dict(width=32)))
    workdir = tmp_path / "run"
    shutil.copytree(trained / "checkpoints", workdir / "checkpoints")
    assert tiny.call(flag, f"--workdir={workdir}", f"--mode={mode}") == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith(f"error: checkpoint 30 in {workdir / 'checkpoints'} is of another model")
    there, here = re.search(r": \S+ is (\(.+\)) there and (\(.+\)) here$", err).groups()
    assert there == "(64, 64)"
    assert here == "(32, 64)"
    assert (workdir / "checkpoints" / "30").is_dir()
