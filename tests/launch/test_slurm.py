"""The SLURM launcher: against stand-ins that note what they are called with, and under SLURM.

For the second, slurmctld, two slurmd and munged of Debian's packages slurm-wlm and munge run on
this machine, each slurmd in a namespace of its own, with a host name that only it bears.
"""

import contextlib
import getpass
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests import tiny
from tests.launch.machine import LAUNCH, Machine

PROGRAM = ("--", "--config=c.py", "--workdir=w")
RUN = ["-m", "vitdiff_jax.main", "--config=c.py", "--workdir=w"]
SCRIPT = str(LAUNCH / "slurm.sbatch")
JOB = dict(SLURM_JOB_ID="7", SLURM_NTASKS="2", SLURM_JOB_NUM_NODES="2")

# They note their arguments; srun starts its command once, as process 0 of the job.
NOTE = """\
import json, os, sys
with open({fake!r} + "/calls.jsonl", "a") as notes:
    notes.write(json.dumps([{name!r}, sys.argv[1:], dict(os.environ)]) + "\\n")
"""
ENDS = {
    "sbatch": "print('Submitted batch job 7')\n",
    "srun": "at = sys.argv.index('-m') - 1\nos.execvp(sys.argv[at], sys.argv[at:])\n",
    "squeue": "print('{state}')\n",
    "scontrol": "",
}


@pytest.fixture
def machine(tmp_path):
    found = Machine(tmp_path)
    for name, end in ENDS.items():
        text = NOTE.format(fake=str(tmp_path), name=name) + end.format(state="RUNNING")
        found.tool(f"bin/{name}", text)
    return found


def test_plans_and_submits(machine, tmp_path):
    (tmp_path / "secrets").write_text("TOKEN=hunter2")
    secrets = f"--env-file={tmp_path / 'secrets'}"
    flags = ["--nodes=2", "--gpus-per-node=8", "--ntasks-per-node=8", "--data=/d", secrets]
    done = machine.run("slurm.sbatch", "--topology=h100:16", *flags, *PROGRAM)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Submitted batch job 7\n"
    assert machine.called("plan")[0][0] == [*RUN, "--mode=plan", "--topology=h100:16"]
    (submitted, _), = machine.called("sbatch")  # fmt: skip
    assert submitted == [*flags[:3], SCRIPT, *flags[3:], *PROGRAM]
    dry = machine.run("slurm.sbatch", "--topology=h100:16", "--dry-run", *flags, *PROGRAM)
    assert [shlex.split(line) for line in dry.stdout.splitlines()] == [
        ["python3", *RUN, "--mode=plan", "--topology=h100:16"], ["sbatch", *submitted],
    ]  # fmt: skip
    assert len(machine.called("sbatch")) == 1


def test_sbatch_refusing_is_passed_on(machine):
    machine.tool(
        "bin/sbatch", "import sys\nprint('sbatch: error: QOSMax', file=sys.stderr)\nsys.exit(1)"
    )
    done = machine.run("slurm.sbatch", "--no-plan", *PROGRAM)
    assert (done.returncode, done.stderr) == (1, "sbatch: error: QOSMax\n")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--nodes=2", *PROGRAM], "--topology="), (["--no-plan"], "-- --config="),
     (["--nodes", "2"], "--flag=value"), (["--topology=h100:8", *PROGRAM], "--no-plan")],
)  # fmt: skip
def test_wrong_usage_is_one_clear_line(machine, arguments, word):
    (machine.folder / "no plan").touch()
    done = machine.run("slurm.sbatch", *arguments)
    assert done.returncode == 2
    assert word in done.stderr.splitlines()[-1]
    assert machine.called("sbatch") == []


@pytest.mark.parametrize(
    ("job", "devices"),
    [(dict(SLURM_GPUS_ON_NODE="4"), "0,1,2,3"), (dict(SLURM_GPUS_ON_NODE="1"), None),
     (dict(SLURM_GPUS_ON_NODE="4", SLURM_NTASKS="8"), None), ({}, None)],
)  # fmt: skip
def test_in_the_job(machine, tmp_path, job, devices):
    """One process a node uses all of its GPUs, else JAX picks one for each."""
    (tmp_path / "secrets").write_text("TOKEN=hunter2")
    flags = ["--data=/d", f"--env-file={tmp_path / 'secrets'}"]
    job = JOB | {"SLURM_CPUS_PER_TASK": "12"} | job
    done = machine.run("slurm.sbatch", *flags, *PROGRAM, **job)
    assert done.returncode == 0, done.stderr
    (arguments, seen), = machine.called("srun")  # fmt: skip
    assert arguments[-4:] == RUN
    assert "hunter2" not in str(arguments)
    assert seen["SRUN_CPUS_PER_TASK"] == "12"
    wanted = {"TOKEN": "hunter2", "TFDS_DATA_DIR": "/d"}
    wanted |= {"JAX_LOCAL_DEVICE_IDS": devices} if devices else {}
    assert machine.called("python3") == [(RUN, wanted)]
    assert machine.called("plan") == []
    assert machine.called("scontrol") == []


@pytest.mark.parametrize(
    ("end", "state", "again"),
    [
        (75, "RUNNING", True),
        (75, "COMPLETING", False),
        (1, "RUNNING", False),
        (0, "RUNNING", False),
    ],
)
def test_what_goes_back_into_the_queue(machine, end, state, again):
    """A run that saved, unless somebody has cancelled the job."""
    machine.tool("bin/squeue", ENDS["squeue"].format(state=state))
    machine.ends([end])
    assert machine.run("slurm.sbatch", *PROGRAM, **JOB).returncode == end
    calls = [arguments for arguments, _ in machine.called("scontrol")]
    assert calls == ([["requeue", "7"]] if again else [])


def test_the_script_outlives_its_signal(machine):
    machine.ends(["stop"])
    process = machine.start("slurm.sbatch", *PROGRAM, **JOB)
    tiny.until((machine.folder / "waiting0").exists, process)
    os.killpg(process.pid, signal.SIGTERM)
    assert machine.end(process).returncode == 75
    assert len(machine.called("scontrol")) == 1


CONFIG = """\
ClusterName=test
SlurmctldHost={host}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/linear
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1
NodeName=n1 NodeHostname=n1 NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname=n2 NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=120
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""
NODE = "hostname {name}; mount --bind {folder}/hosts /etc/hosts; exec slurmd -D -N {name}"


class Cluster:
    """Two nodes, and a partition that preempts the other."""

    def __init__(self, folder):
        self.folder, self.environment = folder, os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"), "PYTHON": sys.executable,
            "JAX_PLATFORMS": "cpu",
        }  # fmt: skip

    def call(self, *command):
        done = subprocess.run(
            command, env=self.environment, cwd=LAUNCH.parent, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def log(self, job):
        path = self.folder / f"{job}.log"
        return path.read_text() if path.exists() else ""

    def state(self, job):
        return self.call("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    missing = [n for n in ("munged", "slurmctld", "slurmd", "unshare") if not shutil.which(n)]
    if missing or os.geteuid() or not sys.platform.startswith("linux"):
        pytest.skip(
            f"needs root and {', '.join(missing) or 'Linux'}: apt-get install slurm-wlm munge"
        )
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("", 0))) for _ in range(3)]
        ports = [one.getsockname()[1] for one in held]
    host = socket.gethostname()
    text = CONFIG.format(folder=folder, host=host, user=getpass.getuser(), ports=ports)
    (folder / "slurm.conf").write_text(text)
    (folder / "hosts").write_text(f"127.0.0.1 localhost n1 n2 {host}\n")
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    found = Cluster(folder)
    files = {n: f"--{n}-file={folder}/munge.{n}" for n in ("pid", "log", "seed")}
    socket_ = f"--socket={folder}/munge.sock"
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={folder}/key", socket_, *files.values()],
        ["slurmctld", "-D", "-c", "-i"],
        *(["unshare", "--uts", "--mount", "bash", "-c", NODE.format(name=name, folder=folder)]
          for name in ("n1", "n2")),
    ]  # fmt: skip
    daemons = []
    try:
        for i, command in enumerate(commands):
            with open(folder / f"daemon{i}.log", "w") as log:
                daemons.append(
                    subprocess.Popen(command, env=found.environment, stdout=log, stderr=log)
                )
            if i == 0:
                tiny.until((folder / "munge.sock").exists, *daemons, seconds=30)
        ready = ("sinfo", "--noheader", "--partition=low", "--states=idle", "--format=%D")
        tiny.until(lambda: _says(found, ready) == "2", *daemons, seconds=60)
        yield found
    finally:
        _says(found, ("scancel", "--signal=KILL", "--full", f"--user={getpass.getuser()}"))
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(60)


def _says(cluster, command):
    """What a command says, also while it still finds nobody to ask."""
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.slow
def test_under_slurm_a_preempted_run_saves_and_goes_on(cluster, tmp_path):
    slow = dict(data=dict(name="tests.slow_digits"), train=dict(steps=2000), log=dict(every=1))
    flags = [tiny.write(tmp_path / "slow.py", **slow), f"--workdir={tmp_path / 'run'}"]
    where = ("--nodes=2", "--partition=low", f"--output={cluster.folder}/%j.log")
    said = cluster.call("bash", SCRIPT, "--no-plan", *where, "--", *flags)
    job = said.removeprefix("Submitted batch job ")
    tiny.until(lambda: re.search(r"0: step \d+/2000", cluster.log(job)))

    # One that matters more takes the nodes as soon as this one has saved.
    other = cluster.call("sbatch", "--parsable", "--partition=high", "--nodes=2",
                         "--output=/dev/null", "--wrap=true")  # fmt: skip
    tiny.until(lambda: cluster.state(other) == "COMPLETED")
    assert cluster.state(job) == "PENDING"
    step = tiny.logged(tmp_path / "run")[-1]
    assert f"0: stopped by a signal at step {step}, saved" in cluster.log(job)

    time.sleep(2)  # in the second of its end SLURM takes a job's new start for the old one
    cluster.call("scontrol", "update", f"JobId={job}", "StartTime=now")  # else it waits 2 minutes
    tiny.until(lambda: f"0: step {step + 1}/2000" in cluster.log(job))
    assert f"0: resuming at step {step} of 2000" in cluster.log(job)

    cluster.call("scancel", job)
    tiny.until(lambda: cluster.state(job) == "CANCELLED")
    tiny.until(lambda: cluster.call("squeue", "--noheader") == "")
    assert cluster.log(job).count("requeueing") == 1
    assert tiny.logged(tmp_path / "run")[-1] > step
