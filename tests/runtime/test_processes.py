"""Where one of several processes ends before its time, the others end soon, and say why.

On CPUs, on one machine: the connections and their ends are those of several machines.
"""

import contextlib
import json
import shutil
import socket
import time

import pytest

from tests import tiny
from vitdiff_jax.runtime.checkpoint import Checkpoints
from vitdiff_jax.runtime.processes import DEATH, GRACE

pytestmark = pytest.mark.slow

SMALL = dict(
    model=tiny.WIDE,
    data=dict(name="tests.slow_digits"),
    train=dict(steps=400, batch=12),  # which three devices divide, and four
    checkpoint=dict(every=2),
    log=dict(every=1),
    evaluate=dict(metrics=("pixel_frechet",), images=100_000),
)
# Process 0 cannot save, a second before process 1 dies.
FIRST = """\
import os, signal, sys, time
import jax
from vitdiff_jax import main
from vitdiff_jax.training import loop
from vitdiff_jax.runtime.checkpoint import CheckpointError
def entry(config, workdir):
    if jax.process_index() == 1:
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    raise CheckpointError("cannot write: Connection reset by peer; free some space")
loop.main = entry
sys.exit(main.main(sys.argv[1:]))
"""
# A lock that somebody unknown left is waited for, longer than collectives of CPUs wait.
PATIENT = """\
import sys
from vitdiff_jax import main
from vitdiff_jax.runtime import lock
lock.STALE = 33
sys.exit(main.main(sys.argv[1:]))
"""
AGAIN = "this process exits too; run the same command to resume"


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def processes(count, *flags, program=("-m", "vitdiff_jax.main")):
    """The command in so many processes, which have about four devices together."""
    address = f"localhost:{free_port()}"
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(tiny.started(
                *program, *flags, f"--coordinator={address}", f"--processes={count}",
                f"--process={i}", devices=4 // count,
            ))
            for i in range(count)
        ]  # fmt: skip


def assert_all_end(found, victim):
    """Kill one; the others end within the stated time with exit code 1 and one clear line."""
    found[victim].kill()
    began = time.monotonic()
    for process in found:
        process.wait(DEATH)
    assert time.monotonic() - began < DEATH
    for i, process in enumerate(found):
        err = process.communicate()[1].splitlines()
        if i != victim:
            assert process.returncode == 1, err
            assert err.count(f"error: process {victim} died; {AGAIN}") == 1, err


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("config") / "small.py", **SMALL)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, config):
    """What is left of three processes, one of which was killed while they saved a checkpoint."""
    workdir = tmp_path_factory.mktemp("killed") / "run"
    with processes(3, config, f"--workdir={workdir}") as found:
        kept = workdir / "checkpoints"
        tiny.until((kept / "2").exists, *found)
        tiny.until(lambda: list(kept.glob("*.orbax-checkpoint-tmp")), *found)
        assert_all_end(found, 2)
    return workdir


def test_a_death_while_saving(saved, tmp_path, config, capsys):
    """The others had nothing to do with it, but cannot go on; the checkpoint before is whole."""
    workdir = shutil.copytree(saved, tmp_path / "run")
    step = Checkpoints(workdir / "checkpoints", read_only=True).newest()
    assert tiny.call(config, f"--workdir={workdir}", f"--config.train.steps={step + 1}") == 0
    assert f"resuming at step {step} of {step + 1}" in capsys.readouterr().out


def test_a_checkpoint_that_fails_by_a_death_is_not_blamed_on_the_disk(tmp_path, config):
    """Which of the two a process hears of first is chance: here it is always the checkpoint."""
    with processes(2, config, f"--workdir={tmp_path}", program=("-c", FIRST)) as found:
        found[1].wait(240)
        assert found[0].wait(DEATH) == 1
        err = found[0].communicate()[1].splitlines()
    assert [line for line in err if line.startswith("error: ")] == [
        f"error: process 1 died; {AGAIN}"
    ]


def test_the_death_of_process_0_in_the_first_step(tmp_path, config):
    """Without process 0 JAX ends the others by itself, with a page of C++: ours is faster."""
    workdir = tmp_path / "run"
    with processes(2, config, f"--workdir={workdir}") as found:
        tiny.until(lambda: list(workdir.glob("events*")), *found)
        assert_all_end(found, 0)
    assert tiny.logged(workdir) == []


def test_a_death_in_an_evaluation(saved, tmp_path, config):
    workdir = shutil.copytree(saved, tmp_path / "run")
    with processes(2, config, f"--workdir={workdir}", "--mode=evaluate") as found:
        while not found[0].stdout.readline().startswith("sampling 100,000 images"):
            assert found[0].poll() is None, found[0].communicate()
        time.sleep(2)
        assert_all_end(found, 1)
    assert not (workdir / "evaluation.json").exists()


def test_an_error_of_one_process_ends_the_others(tmp_path):
    """Its own line tells what to mend, and so do theirs."""
    data = dict(name="tests.slow_digits", broken=True)
    config = tiny.write(tmp_path / "broken.py", **SMALL | dict(data=data))
    with processes(2, config, f"--workdir={tmp_path / 'run'}") as found:
        found[1].wait(240)
        began = time.monotonic()
        found[0].wait(DEATH)
        assert time.monotonic() - began < GRACE + 2
        (_, err0), (_, err1) = (process.communicate() for process in found)
    assert [process.returncode for process in found] == [1, 1]
    error = "/data/digits: Input/output error"
    assert f"error: {error}" in err1.splitlines()
    assert f"error: process 1 failed ({error}); {AGAIN}" in err0.splitlines()


def test_all_wait_for_the_lock_of_a_workdir(tmp_path, config):
    """Only process 0 looks at it, and the others wait for as long as that takes."""
    (tmp_path / "lock.json").write_text(json.dumps(dict(
        token="its", host="node7", process=3, since="2026", machine="another", started=None,
    )))  # fmt: skip
    flags = [config, f"--workdir={tmp_path}", "--config.train.steps=1"]
    began = time.monotonic()
    with processes(2, *flags, program=("-c", PATIENT)) as found:
        said = [process.communicate(timeout=240) for process in found]
    assert [process.returncode for process in found] == [0, 0], said
    assert time.monotonic() - began > 33
    assert "is locked by process 3 on node7; waiting up to 33 s" in said[0][0]
    assert not (tmp_path / "lock.json").exists()
