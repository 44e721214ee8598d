"""Several processes on one machine: for real on two CPUs, and with stand-ins for GPUs."""

import os
import shlex
import signal
import subprocess
import sys

import pytest

from tests import tiny
from tests.launch.machine import LAUNCH, Machine
from tests.parts import only

PROGRAM = ("--", "--config=c.py", "--workdir=w w")


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.slow
def test_two_processes_train_the_digits_and_ctrl_c_saves(tmp_path):
    data, train = dict(name="tests.slow_digits"), dict(steps=400)
    slow = dict(data=data, train=train, model=dict(depth=1), log=dict(every=1))
    flags = [tiny.write(tmp_path / "slow.py", **slow), f"--workdir={tmp_path / 'run'}"]
    environment = os.environ | {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
    command = ["bash", str(LAUNCH / "local.sh"), "--processes=2", "--", *flags]
    process = subprocess.Popen(
        command, env=environment, cwd=tiny.REPOSITORY, text=True, stdout=subprocess.PIPE,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("[0] step 1/400"):
            break
    os.killpg(process.pid, signal.SIGINT)
    said += process.communicate(timeout=120)[0]
    assert process.returncode == 75, said
    assert {line[:4] for line in said.splitlines()} == {"[0] ", "[1] "}
    step = tiny.logged(tmp_path / "run")[-1]
    assert f"[0] stopped by a signal at step {step}, saved" in said
    assert step < 400


def test_gpus_are_shared_out(machine):
    machine.gpus(*["NVIDIA H100 80GB HBM3"] * 4)
    done = machine.run("local.sh", "--processes=2", *PROGRAM, CUDA_VISIBLE_DEVICES="0,1,5,7")
    assert done.returncode == 0, done.stderr
    (planned, _), = machine.called("plan")  # fmt: skip
    assert planned == ["-m", "vitdiff_jax.main", *PROGRAM[1:], "--mode=plan", "--topology=h100:4"]
    found = {
        seen["CUDA_VISIBLE_DEVICES"]: arguments for arguments, seen in machine.called("python3")
    }
    for process, devices in enumerate(["0,1", "5,7"]):
        assert found[devices] == [
            "-m", "vitdiff_jax.main", *PROGRAM[1:], "--coordinator=localhost:12345",
            "--processes=2", f"--process={process}",
        ]  # fmt: skip
    assert "[0] hello from 0" in done.stdout


def test_without_gpus_nothing_is_shared_or_planned(machine):
    for environment in {}, {"JAX_PLATFORMS": "cpu"}:
        assert machine.run("local.sh", "--processes=3", *PROGRAM, **environment).returncode == 0
        machine.gpus("NVIDIA H200")
    assert [seen for _, seen in machine.called("python3")] == [{}] * 6
    assert machine.called("plan") == []


@pytest.mark.parametrize(("others", "code"), only([(1, 3)], [(1, 3), ("hang", 137)]))
def test_one_that_dies_ends_all(machine, others, code):
    """They do so by themselves, with 1; what hangs is killed."""
    machine.ends([others], [3])
    done = machine.run("local.sh", "--processes=2", *PROGRAM, GRACE_SECONDS="1")
    assert done.returncode == code
    assert ("killing them" in done.stderr) == (others == "hang")


def test_a_signal_reaches_all(machine):
    machine.ends(["stop"], ["stop"])
    process = machine.start("local.sh", "--processes=2", *PROGRAM)
    tiny.until(lambda: all((machine.folder / f"waiting{i}").exists() for i in range(2)), process)
    process.send_signal(signal.SIGTERM)
    assert machine.end(process).returncode == 75


def test_dry_run_and_secrets(machine, tmp_path):
    machine.gpus(*["NVIDIA A100-SXM4-80GB"] * 2)
    (tmp_path / "secrets").write_text("TOKEN=hunter2")
    flags = ("--processes=2", f"--env-file={tmp_path / 'secrets'}", "--data=/d")
    done = machine.run("local.sh", *flags, "--dry-run", *PROGRAM)
    assert done.returncode == 0, done.stderr
    plan, token, data, *starts = [shlex.split(line) for line in done.stdout.splitlines()]
    assert plan[-1] == "--topology=a100:2"
    assert (token, data) == (["export", "TOKEN=***"], ["export", "TFDS_DATA_DIR=***"])
    assert [line[:2] for line in starts] == [["env", f"CUDA_VISIBLE_DEVICES={i}"] for i in range(2)]
    assert machine.calls == []
    assert machine.run("local.sh", *flags, "--no-plan", *PROGRAM).returncode == 0
    for arguments, seen in machine.called("python3"):
        assert (seen["TOKEN"], seen["TFDS_DATA_DIR"]) == ("hunter2", "/d")
        assert "hunter2" not in str(arguments)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--processes=3", *PROGRAM], "2 GPUs cannot be divided evenly"),
        (["--processes=0", *PROGRAM], "at least 1"),
        (["--processes=two", *PROGRAM], "--processes=two"),
        ([*PROGRAM], "--processes="),
        (["--processes=2"], "-- --config="),
        (["--procs=2", *PROGRAM], "--procs=2"),
        (["--processes=2", *PROGRAM], "--no-plan"),
    ],
)
def test_wrong_usage_is_one_clear_line(machine, arguments, word):
    machine.gpus("NVIDIA H200", "NVIDIA H200")
    (machine.folder / "no plan").touch()
    done = machine.run("local.sh", *arguments)
    assert done.returncode == 2
    assert word in done.stderr.splitlines()[-1]
    assert machine.called("python3") == []
