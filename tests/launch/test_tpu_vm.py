"""The Cloud TPU launcher against a stand-in for gcloud.

No test can rent a TPU, and what goes wrong there (preemption, dropped connections, quota) cannot be
ordered either. So `gcloud` is a script that notes each call and answers as gcloud 528 does, and its
ssh really runs the command, in a folder per worker: both halves of the launcher are under test.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "tpu_vm.sh"

# What the real tool says: the messages and exit codes were read off its source and public reports.
GCLOUD = """\
import json, os, shutil, subprocess, sys
from pathlib import Path

FAKE = Path({fake!r})
FLAGS = {{
    "describe": ["--format"], "delete": [], "create": ["--accelerator-type", "--version", "--spot"],
    "scp": ["--worker"], "ssh": ["--worker", "--ssh-flag", "--command"],
}}
SAVED = FAKE / "cloud.json"
cloud = json.loads(SAVED.read_text())

def leave(code, message=""):
    SAVED.write_text(json.dumps(cloud))
    if message:
        print(f"ERROR: (gcloud.compute.tpus.tpu-vm.{{verb}}) {{message}}", file=sys.stderr)
    sys.exit(code)

verb, words = sys.argv[4], sys.argv[5:]
flags = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
with open(FAKE / "calls.jsonl", "a") as calls:
    calls.write(json.dumps([verb, words]) + "\\n")
if sys.argv[1:4] != ["compute", "tpus", "tpu-vm"]:
    leave(2, "Invalid choice")
for flag in flags:
    if flag not in FLAGS[verb] + ["--zone", "--project", "--quiet"]:
        leave(2, f"unrecognized arguments: {{flag}}")
if cloud["offline"]:
    leave(1, "There was a problem refreshing your current auth tokens")
if verb == "describe" and cloud["states"]:
    cloud["state"] = cloud["states"].pop(0)
if verb != "create" and cloud["state"] is None:
    leave(1, "NOT_FOUND: Resource 'projects/p/locations/z/nodes/vit' was not found.")
if verb in ("scp", "ssh") and cloud["state"] != "READY":
    leave(1, f'This TPU has terminal state "{{cloud["state"]}}", so it cannot be used anymore.')
if verb == "describe":
    print(cloud["state"])
elif verb == "create":
    if cloud["refusals"]:
        leave(1, cloud["refusals"].pop(0))
    if cloud["state"] is not None:
        leave(1, "ALREADY_EXISTS: Requested entity already exists")
    cloud["state"] = "READY"
elif verb == "delete":
    cloud["state"] = None
if verb in ("create", "delete"):  # a disk lives as long as its VM
    for worker in range(cloud["workers"]):
        shutil.rmtree(FAKE / f"home{{worker}}", ignore_errors=True)
        (FAKE / f"home{{worker}}").mkdir()
elif verb == "scp":
    for worker in range(cloud["workers"]):
        shutil.copy(words[0], FAKE / f"home{{worker}}")
elif verb == "ssh":
    event = cloud["events"].pop(0) if cloud["events"] and "worker_run" in flags["--command"] else ""
    if event in ("PREEMPTED", "vanished"):
        cloud["state"] = "PREEMPTED" if event == "PREEMPTED" else None
        leave(255)
    codes = []
    for worker in range(cloud["workers"]):
        for _ in range(2 if event == "sent twice" else 1):
            home = str(FAKE / f"home{{worker}}")
            environment = dict(os.environ, HOME=home, WORKER=str(worker))
            environment["PATH"] = f"{{FAKE}}/worker_bin:" + environment["PATH"]
            done = subprocess.run(["bash", "-c", flags["--command"]], cwd=home, env=environment)
        codes.append(done.returncode)
    leave(255 if event == "dropped" else next((code for code in codes if code), 0))
leave(0)
"""

# A worker's Python, its virtual environment's, and pip: each notes what it was asked to do.
PYTHON = """\
import json, os, shutil, signal, sys, time
from pathlib import Path

FAKE, worker = Path({fake!r}), os.environ["WORKER"]
name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
if arguments[0] == "-c":
    sys.exit(0)
if arguments[:2] == ["-m", "venv"]:
    folder = Path(arguments[2], "bin")
    folder.mkdir(parents=True, exist_ok=True)
    for tool in ("python", "pip"):
        shutil.copy(sys.argv[0], folder / tool)
    sys.exit(0)
with open(FAKE / f"{{name}}.jsonl", "a") as notes:
    notes.write(json.dumps([worker, os.getcwd(), arguments]) + "\\n")
if name == "pip":
    sys.exit(0)
print("hello from worker", worker, flush=True)
saved = FAKE / f"codes{{worker}}.json"
codes = json.loads(saved.read_text())
code = codes.pop(0) if codes else 0
saved.write_text(json.dumps(codes))
if code == "until stopped":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (FAKE / "waiting").touch()
    time.sleep(60)
sys.exit(code)
"""


class Cloud:
    """The stand-in cloud, its one VM, and a checkout to launch from."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.checkout = folder / "checkout"
        self.set(state=None, workers=1, states=[], refusals=[], events=[], offline=False)
        for worker in range(2):
            (folder / f"home{worker}").mkdir()
        self.codes([], [])
        for tool, text in ("bin/gcloud", GCLOUD), ("worker_bin/python3.13", PYTHON):
            path = folder / tool
            path.parent.mkdir()
            path.write_text(f"#!{sys.executable} -IS\n" + text.format(fake=str(folder)))
            path.chmod(0o755)
        (self.checkout / "launch").mkdir(parents=True)
        shutil.copy(SCRIPT, self.checkout / "launch")
        subprocess.run(["git", "init", "-q"], cwd=self.checkout, check=True)

    def set(self, **facts):
        path = self.folder / "cloud.json"
        old = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(old | facts))

    def codes(self, *per_worker):
        """The exit codes of the program's next runs, for each worker."""
        for worker, codes in enumerate(per_worker):
            (self.folder / f"codes{worker}.json").write_text(json.dumps(codes))

    def start(self, *arguments, **environment) -> subprocess.Popen:
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", str(self.checkout / "launch" / "tpu_vm.sh"), *arguments],
            env=os.environ | {"PATH": path, "POLL_SECONDS": "0"} | environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            # A shell's background jobs ignore Ctrl-C, and so would this, if the tests are one.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def launch(self, *arguments, **environment) -> subprocess.CompletedProcess:
        process = self.start(*arguments, **environment)
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:  # an endless loop must not outlive its test
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def run(self, *flags, program=("--config=c.py",), **environment):
        return self.launch("run", "--name=vit", "--zone=z", *flags, "--", *program, **environment)

    def _notes(self, name):
        path = self.folder / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def calls(self):
        return self._notes("calls")

    @property
    def verbs(self):
        return [verb for verb, _ in self.calls]

    @property
    def programs(self):
        """What the program was started with, each time: worker, folder, arguments."""
        return self._notes("python")

    @property
    def installs(self):
        return self._notes("pip")


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


def test_fresh_creation(cloud):
    (cloud.checkout / ".gitignore").write_text("runs/\n")
    (cloud.checkout / "runs").mkdir()
    (cloud.checkout / "runs" / "big").touch()
    (cloud.checkout / "gone.py").touch()
    subprocess.run(["git", "add", "."], cwd=cloud.checkout, check=True)
    (cloud.checkout / "gone.py").unlink()
    (cloud.checkout / "new config.py").touch()

    done = cloud.run("--type=v6e-8", "--spot", "--project=p")

    assert done.returncode == 0, done.stderr
    assert cloud.verbs == ["describe", "create", "scp", "ssh", "ssh"]
    assert cloud.calls[1][1] == [
        "vit", "--accelerator-type=v6e-8", "--version=v2-alpha-tpuv6e", "--spot",
        "--zone=z", "--quiet", "--project=p",
    ]  # fmt: skip
    for verb, words in cloud.calls[2:]:
        assert "--worker=all" in words, verb
    home = cloud.folder / "home0"
    there = {str(path.relative_to(home / "vitdiff_jax")) for path in home.glob("vitdiff_jax/**/*")}
    assert there == {"launch", "launch/tpu_vm.sh", ".gitignore", "new config.py"}
    assert cloud.installs == [
        ["0", str(home / "vitdiff_jax"), ["install", "--quiet", "-e", ".[tpu]"]]
    ]
    assert cloud.programs == [
        ["0", str(home / "vitdiff_jax"), ["-m", "vitdiff_jax.main", "--config=c.py"]]
    ]
    assert "hello from worker 0" in done.stdout


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        ("v5litepod-8", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v4-8", "tpu-ubuntu2204-base"),
    ],
)
def test_version_follows_the_type(cloud, kind, version):
    done = cloud.run("--dry-run", f"--type={kind}")
    assert f"--version={version} " in done.stdout


def test_dry_run_prints_every_command_and_runs_none(cloud):
    done = cloud.run("--dry-run", program=("--config=a b.py",))
    assert done.returncode == 0
    assert cloud.calls == []
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    verbs = [line[4] for line in lines if line[0] == "gcloud"]
    assert verbs == ["describe", "create", "scp", "ssh", "ssh"]
    assert lines[2][0] == "git"
    assert "tar" in lines[2]
    assert "worker_install" in " ".join(lines[4])
    assert r"-m vitdiff_jax.main --config=a\ b.py" in " ".join(lines[5])


def test_dry_run_of_delete_and_status(cloud):
    for action, verbs in ("delete", ["describe", "delete"]), ("status", ["describe"]):
        done = cloud.launch("--dry-run", action, "--name=vit", "--zone=z")
        assert [line.split()[4] for line in done.stdout.splitlines()] == verbs
    assert cloud.calls == []


def test_a_ready_vm_is_reused(cloud):
    cloud.set(state="READY")
    assert cloud.run().returncode == 0
    assert cloud.verbs == ["describe", "scp", "ssh", "ssh"]


def test_a_vm_in_creation_is_waited_for(cloud):
    cloud.set(states=["CREATING", "CREATING", "READY"])
    assert cloud.run().returncode == 0
    assert cloud.verbs == ["describe"] * 3 + ["scp", "ssh", "ssh"]


@pytest.mark.parametrize("state", ["PREEMPTED", "TERMINATED"])
def test_a_dead_vm_is_made_anew(cloud, state):
    cloud.set(state=state)
    assert cloud.run().returncode == 0
    assert cloud.verbs == ["describe", "delete", "describe", "create", "scp", "ssh", "ssh"]


def test_a_stopped_vm_is_left_alone(cloud):
    """Somebody stopped it on purpose, and its disk may hold what exists nowhere else."""
    cloud.set(state="STOPPED")
    done = cloud.run()
    assert done.returncode == 1
    assert "STOPPED" in done.stderr
    assert cloud.verbs == ["describe"]


@pytest.mark.parametrize(("event", "deletions"), [("PREEMPTED", 1), ("vanished", 0)])
def test_preemption_during_the_run(cloud, event, deletions):
    cloud.set(state="READY", events=[event])
    done = cloud.run()
    assert done.returncode == 0, done.stderr
    assert cloud.verbs.count("delete") == deletions
    assert cloud.verbs.count("create") == 1
    assert len(cloud.installs) == 2  # the new VM has an empty disk
    assert len(cloud.programs) == 1


def test_exit_75_means_run_me_again(cloud):
    cloud.set(state="READY")
    cloud.codes([75, 75, 0])
    assert cloud.run().returncode == 0
    assert len(cloud.programs) == 3
    assert len(cloud.installs) == 1


def test_retries_are_bounded(cloud):
    cloud.set(state="READY")
    cloud.codes([75] * 9)
    done = cloud.run("--retries=2")
    assert done.returncode == 75
    assert len(cloud.programs) == 3
    assert done.stderr.splitlines()[-1] == "tpu_vm: gave up after 2 retries without progress"


def test_progress_renews_the_retries(cloud):
    cloud.set(state="READY")
    cloud.codes([75, 75, 75, 0])
    assert cloud.run("--retries=1", PROGRESS_SECONDS="0").returncode == 0


@pytest.mark.parametrize("code", [1, 3, 137])
def test_a_failure_is_passed_on(cloud, code):
    cloud.set(state="READY")
    cloud.codes([code])
    done = cloud.run()
    assert done.returncode == code
    assert len(cloud.programs) == 1
    assert f"failed with exit code {code}" in done.stderr


@pytest.mark.parametrize("event", ["dropped", "sent twice"])
def test_a_broken_connection_does_not_start_the_program_twice(cloud, event):
    """gcloud itself sends the command again, up to ten times, to a worker whose ssh broke off."""
    cloud.set(state="READY", events=[event])
    assert cloud.run().returncode == 0
    assert len(cloud.programs) == 1


@pytest.mark.parametrize(("codes", "end"), [((0, 3), 3), ((3, 75), 0), ((0, 0), 0)])
def test_all_workers_count(cloud, codes, end):
    """A worker that saved and asks for another run outweighs its peers, who died of missing it."""
    cloud.set(state="READY", workers=2)
    cloud.codes(*([code, 0] for code in codes))
    assert cloud.run().returncode == end
    assert {worker for worker, *_ in cloud.programs} == {"0", "1"}
    assert len(cloud.programs) == (4 if 75 in codes else 2)


def test_an_earlier_run_is_stopped_first(cloud):
    """Ctrl-C leaves the program going; two of them would fight for the TPU."""
    cloud.set(state="READY")
    cloud.codes(["until stopped", 0])
    first = cloud.start("run", "--name=vit", "--zone=z", "--", "--config=c.py")
    for _ in range(200):
        if (cloud.folder / "waiting").exists():
            break
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGINT)
    first.communicate(timeout=60)

    done = cloud.run()

    assert done.returncode == 0
    assert "stopping the earlier run" in done.stderr
    logs = sorted((cloud.folder / "home0" / "vitdiff_runs").iterdir())
    assert [(log / "exit_code").read_text().strip() for log in logs] == ["75", "0"]


def test_a_refused_quota_is_one_clear_line(cloud):
    refusal = "RESOURCE_EXHAUSTED: Quota limit 'TPUV5s' has been\nexceeded. Limit: 0 in zone z."
    cloud.set(refusals=[refusal] * 3)
    done = cloud.run()
    assert done.returncode == 1
    assert cloud.verbs == ["describe", "create"]
    _creating, line = done.stderr.splitlines()
    assert "Quota limit 'TPUV5s' has been exceeded" in line
    assert "--zone" in line


def test_a_zone_without_capacity_is_asked_again(cloud):
    full = '{\n  "code": 8,\n  "message": "There is no more capacity in the zone"\n}'
    cloud.set(refusals=[full] * 2)
    assert cloud.run().returncode == 0
    assert cloud.verbs.count("create") == 3
    cloud.set(state=None, refusals=[full] * 9)
    assert cloud.run("--retries=1").returncode == 75


def test_a_worker_without_a_fit_python_is_one_clear_line(cloud):
    cloud.set(state="READY")
    for name in ("python3.13", "python3.12", "python3.11", "python3"):
        path = cloud.folder / "worker_bin" / name
        path.write_text("#!/bin/sh\nexit 1\n")
        path.chmod(0o755)
    done = cloud.run()
    assert done.returncode == 1
    assert "no Python 3.11 or newer" in done.stderr
    assert cloud.programs == []


def test_status(cloud):
    for state, word in (None, "NOT_FOUND"), ("PREEMPTED", "PREEMPTED"):
        cloud.set(state=state)
        done = cloud.launch("status", "--name=vit", "--zone=z")
        assert (done.returncode, done.stdout) == (0, word + "\n")


def test_delete(cloud):
    cloud.set(state="READY")
    assert cloud.launch("delete", "--name=vit", "--zone=z").returncode == 0
    assert cloud.calls[-1] == ["delete", ["vit", "--zone=z", "--quiet"]]
    assert cloud.launch("delete", "--name=vit", "--zone=z").returncode == 0
    assert cloud.verbs == ["describe", "delete", "describe"]


@pytest.mark.parametrize("action", ["run", "status", "delete"])
def test_a_cloud_out_of_reach_is_one_clear_line(cloud, action):
    """Above all it is no missing VM: that one would be created, and billed."""
    cloud.set(offline=True)
    done = cloud.launch(action, "--name=vit", "--zone=z", "--", "--config=c.py")
    assert done.returncode == 1
    assert cloud.verbs == ["describe"]
    assert len(done.stderr.splitlines()) == 1
    assert "auth tokens" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--name=vit", "--zone=z"], "action"),
        (["run", "--zone=z", "--", "--config=c.py"], "--name=NAME"),
        (["run", "--name=", "--zone=z", "--", "--config=c.py"], "--name=NAME"),
        (["run", "--name=vit", "--", "--config=c.py"], "--zone=ZONE"),
        (["status", "--name=vit"], "--zone=ZONE"),
        (["run", "--name=vit", "--zone=z"], "-- --config="),
        (["run", "--name=vit", "--zone=z", "--retries=many", "--", "x"], "--retries=many"),
        (["run", "--name", "vit"], "--flag=value"),
        (["run", "--name=vit", "--zone=z", "--tpye=v4-8", "--", "x"], "--tpye=v4-8"),
    ],
)
def test_wrong_usage_is_one_clear_line(cloud, arguments, word):
    done = cloud.launch(*arguments)
    assert done.returncode == 2
    assert cloud.calls == []
    assert len(done.stderr.splitlines()) == 1
    assert word in done.stderr


def test_arguments_survive_the_shells(cloud):
    cloud.set(state="READY")
    program = (
        "--config=my configs/a.py",
        "it's",
        '"quoted"',
        "$HOME `x` \\ * ;&|",
        "two\nlines",
        "",
    )
    assert cloud.run(program=program).returncode == 0
    assert cloud.programs[0][2] == ["-m", "vitdiff_jax.main", *program]


def test_help_is_the_header(cloud):
    done = cloud.launch("--help")
    assert done.returncode == 0
    assert "Exit codes:" in done.stdout
    assert "set -euo" not in done.stdout
