"""One machine with GPUs, of which there is none here: stand-ins for nvidia-smi, Python and pip."""

import shlex
import signal

import pytest

from tests import tiny
from tests.launch.machine import Machine
from tests.parts import only

PROGRAM = ("--", "--config=c.py")
RUN = ["-m", "vitdiff_jax.main", "--config=c.py"]


@pytest.fixture
def machine(tmp_path):
    found = Machine(tmp_path)
    found.gpus(*["NVIDIA H100 80GB HBM3"] * 8)
    return found


@pytest.fixture
def gpu(machine):
    venv = f"--venv={machine.folder / 'venv'}"
    return lambda *flags, **environment: machine.run("gpu.sh", venv, *flags, **environment)


@pytest.mark.parametrize(("cuda", "extra"), [("12.4", "cuda12"), ("13.0", "cuda13")])
def test_installs_once_plans_and_runs(machine, gpu, cuda, extra):
    machine.gpus(*["NVIDIA H100 80GB HBM3"] * 8, cuda=cuda)
    done = gpu("--data=/d", *PROGRAM)
    assert done.returncode == 0, done.stderr
    (installed, _), = machine.called("pip")  # fmt: skip
    assert installed[-1].endswith(f"[{extra}]")
    assert machine.called("plan")[0][0][-2:] == ["--mode=plan", "--topology=h100:8"]
    assert machine.called("python") == [(RUN, {"TFDS_DATA_DIR": "/d"})]
    order = [kind for kind, *_ in machine.calls]
    assert order.index("pip") < order.index("plan") < order.index("python")
    assert gpu(*PROGRAM).returncode == 0
    assert len(machine.called("pip")) == 1
    assert len(machine.called("python")) == 2


@pytest.mark.parametrize(
    ("ends", "code", "runs"),
    only(
        [([1, 137, 0], 0, 3), ([2], 2, 1)],
        [([1, 137, 0], 0, 3), ([1] * 9, 1, 4), ([2], 2, 1), ([75, 0], 0, 2)],
    ),
)
def test_crashes_are_followed_by_another_run(machine, gpu, ends, code, runs):
    machine.ends(ends)
    done = gpu(*PROGRAM)
    assert done.returncode == code
    assert len(machine.called("python")) == runs
    assert len(machine.called("plan")) == 1
    assert ("gave up after 3 retries" in done.stderr) == (runs == 4)


@pytest.mark.slow
def test_progress_renews_the_retries(machine, gpu):
    machine.ends([1] * 5)
    assert gpu("--retries=1", *PROGRAM, PROGRESS_SECONDS="0").returncode == 0


def test_a_signal_stops_it_for_good(machine):
    machine.ends(["stop", 0])
    process = machine.start("gpu.sh", f"--venv={machine.folder / 'venv'}", *PROGRAM)
    tiny.until((machine.folder / "waiting0").exists, process)
    process.send_signal(signal.SIGINT)
    assert machine.end(process).returncode == 75
    assert len(machine.called("python")) == 1


def test_dry_run_and_secrets(machine, gpu, tmp_path):
    (tmp_path / "secrets").write_text("TOKEN=hunter2")
    secrets = f"--env-file={tmp_path / 'secrets'}"
    done = gpu("--dry-run", secrets, *PROGRAM)
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert lines[0][1:3] == ["-m", "venv"]
    assert lines[1][1] == "install"
    assert "--mode=plan" in lines[2]
    assert lines[3] == ["export", "TOKEN=***"]
    assert lines[4][1:] == RUN
    assert machine.calls == []
    assert gpu(secrets, *PROGRAM).returncode == 0
    assert machine.called("python") == [(RUN, {"TOKEN": "hunter2"})]


def test_a_gpu_without_a_plan(machine, gpu):
    machine.gpus("NVIDIA GeForce RTX 4090")
    done = gpu(*PROGRAM)
    assert done.returncode == 0
    assert "no plan for NVIDIA GeForce RTX 4090" in done.stderr
    assert machine.called("plan") == []


COMMUNICATE = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."


@pytest.mark.parametrize(
    ("gpus", "word"),
    [
        (dict(failure=COMMUNICATE), "couldn't communicate"),
        (dict(cuda="11.8"), "the driver supports CUDA 11"),
    ],
)
def test_a_machine_that_is_not_fit_is_one_clear_line(machine, gpu, gpus, word):
    machine.gpus("NVIDIA H200", **gpus)
    done = gpu(*PROGRAM)
    assert done.returncode == 2
    assert word in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert machine.calls == []


@pytest.mark.parametrize(("file", "code"), [("no pip", 1), ("no plan", 2)])
def test_what_cannot_be_made_ready_is_not_run(machine, gpu, file, code):
    (machine.folder / file).touch()
    assert gpu(*PROGRAM).returncode == code
    assert machine.called("python") == []
    (machine.folder / file).unlink()
    assert gpu(*PROGRAM).returncode == 0  # a failed installation is not taken for one
    assert len(machine.called("pip")) == (2 if file == "no pip" else 1)
