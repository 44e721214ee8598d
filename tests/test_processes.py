"""Two processes of two devices each, through the command's own flags: they do as one with four."""

import contextlib
import json
import signal
import socket

import pytest

from tests import tiny
from tests.test_parallel import assert_equal
from vitdiff_jax.checkpoint import Checkpoints

TOGETHER = dict(
    model=dict(width=32, scan=True, class_tokens_from=0),
    optimizer=dict(eps=1e-3),  # or Adam turns the rounding of tiny gradients into steps as well
    train=dict(steps=4),
    checkpoint=dict(every=2, keep=1),
    log=dict(every=1, sample_every=2, heldout_every=4, heldout_images=8, heldout_levels=2),
)


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def two_processes(*flags):
    address = f"localhost:{free_port()}"
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(tiny.started(
                "-m", "vitdiff_jax.main", *flags, f"--coordinator={address}", "--processes=2",
                f"--process={i}", devices=2,
            ))
            for i in range(2)
        ]  # fmt: skip


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("config") / "together.py", **TOGETHER)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, together):
    """What one process with the same four devices saves."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    assert tiny.command(together, f"--workdir={workdir}", devices=4)[::2] == (0, "")
    return workdir


@pytest.mark.parametrize("flag", ["--config.parallel.fsdp=4", "--config.parallel.compiler=pmap"])
def test_two_processes_do_as_one(tmp_path, together, alone, flag):
    workdir = tmp_path / "run"
    with two_processes(together, f"--workdir={workdir}", flag) as processes:
        ends = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert ends[0][0].endswith(f"finished at step 4; samples in {workdir / 'samples'}\n")
    assert "step 4/4" not in ends[1][0]  # process 0 speaks for both
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["4"]
    assert len(list(workdir.glob("events*"))) == 1
    assert tiny.logged(workdir) == tiny.logged(alone) == [1, 2, 3, 4, 4]  # and held-out losses
    found, wanted = (tiny.saved(tiny.config(**TOGETHER), place) for place in (workdir, alone))
    assert_equal(found, wanted)
    names = ["00000002.png", "00000004.png"]
    assert sorted(path.name for path in (workdir / "samples").iterdir()) == names
    losses = [json.loads((place / "metrics.jsonl").read_text().splitlines()[-1])
              for place in (workdir, alone)]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_two_processes_stop_at_the_same_step(tmp_path, capsys):
    """A cluster's SIGTERM may reach one of them only; then the same command goes on."""
    slow = dict(data=dict(name="tests.slow_digits"), train=dict(steps=400))
    flag = tiny.write(tmp_path / "slow.py", model=TOGETHER["model"], log=dict(every=1), **slow)
    flags = [flag, f"--workdir={tmp_path / 'run'}", "--config.parallel.fsdp=4"]
    with two_processes(*flags) as processes:
        tiny.until(lambda: len(tiny.logged(tmp_path / "run")) > 3, *processes)
        processes[1].send_signal(signal.SIGTERM)
        ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [75, 75], ends
    step = Checkpoints(tmp_path / "run" / "checkpoints", read_only=True).newest()
    assert step == tiny.logged(tmp_path / "run")[-1] < 400
    assert f"stopped by a signal at step {step}, saved" in ends[0][0]
    assert tiny.call(*flags[:2], f"--config.train.steps={step + 1}") == 0
    assert f"resuming at step {step} of {step + 1}" in capsys.readouterr().out
