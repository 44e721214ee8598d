"""A cloud that is not there: what gcloud and the workers of a TPU VM are in the tests.

No test can rent a TPU, and what goes wrong there (preemption, dropped connections, quota) cannot be
ordered either. So `gcloud` is a script that notes each call and answers as gcloud 528 does, and its
ssh really runs the command, in a folder per worker: both halves of the launcher are under test.
"""

import json
import shutil
import subprocess
from pathlib import Path

from tests.launch.machine import LAUNCH, Stage

SCRIPTS = ("shared.sh", "tpu_vm.sh", "tpu_worker.sh")

# What the real tool says: flags, messages and exit codes were read off gcloud 528 and its source,
# what the service itself answers off its reference and public reports.
GCLOUD = """\
import json, os, shutil, subprocess, sys
from pathlib import Path

FAKE = Path({fake!r})
FLAGS = {{
    "describe request": ["--format"], "delete request": ["--force"],
    "create request": ["--node-id", "--accelerator-type", "--runtime-version", "--spot"],
    "describe": ["--format"], "scp": ["--worker"], "ssh": ["--worker", "--ssh-flag", "--command"],
}}
SAVED = FAKE / "cloud.json"
cloud = json.loads(SAVED.read_text())

def leave(code, message=""):
    SAVED.write_text(json.dumps(cloud))
    if message:
        where = ".".join(sys.argv[1:5])
        print(f"ERROR: (gcloud.{{where}}) {{message}}", file=sys.stderr)
    sys.exit(code)

group, words = sys.argv[3], sys.argv[5:]
verb = sys.argv[4] + (" request" if group == "queued-resources" else "")
flags = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
with open(FAKE / "calls.jsonl", "a") as calls:
    calls.write(json.dumps([verb, words]) + "\\n")
if sys.argv[1:3] != ["compute", "tpus"] or verb not in FLAGS:
    leave(2, "Invalid choice")
for flag in flags:
    if flag not in FLAGS[verb] + ["--zone", "--project", "--quiet"]:
        leave(2, f"unrecognized arguments: {{flag}}")
if cloud["offline"]:
    leave(1, "There was a problem refreshing your current auth tokens")
if verb == "describe request" and cloud["queue"]:
    cloud["request"] = cloud["queue"].pop(0)
    cloud["node"] = "READY" if cloud["request"] == "ACTIVE" else None
there = cloud["request"] if group == "queued-resources" else cloud["node"]
if verb != "create request" and there is None:
    where = "queuedResources" if group == "queued-resources" else "nodes"
    leave(1, f"NOT_FOUND: Resource 'projects/p/locations/z/{{where}}/vit' was not found.")
if verb in ("scp", "ssh") and there != "READY":
    leave(1, f'This TPU has terminal state "{{there}}", so it cannot be used anymore.')
if verb == "describe request":
    failed = flags["--format"] == "value(state.failedData.error.message)"
    print(cloud["failure"] if failed else there)
elif verb == "describe":
    print(there)
elif verb == "create request":
    if cloud["refusals"]:
        leave(1, cloud["refusals"].pop(0))
    if there is not None:
        leave(1, "ALREADY_EXISTS: Requested entity already exists")
    if not cloud["queue"]:
        cloud["queue"] = ["ACTIVE"]
    cloud["request"] = "WAITING_FOR_RESOURCES"
elif verb == "delete request":
    if cloud["node"] and "--force" not in flags:
        leave(1, "FAILED_PRECONDITION: the queued resource has nodes")
    cloud["request"] = cloud["node"] = None
if verb in ("create request", "delete request"):  # a disk lives as long as its VM
    for worker in range(cloud["workers"]):
        shutil.rmtree(FAKE / f"home{{worker}}", ignore_errors=True)
        (FAKE / f"home{{worker}}").mkdir()
elif verb == "scp":
    for worker in range(cloud["workers"]):
        for source in words[:words.index("vit:")]:
            shutil.copy(source, FAKE / f"home{{worker}}")
elif verb == "ssh":
    kind = "run" if "worker.sh run" in flags["--command"] else "install"
    event = ""
    if cloud["events"] and cloud["events"][0][0] == kind and "worker.sh" in flags["--command"]:
        event = cloud["events"].pop(0)[1]
    if event in ("PREEMPTED", "SUSPENDED", "vanished"):
        cloud["node"] = "PREEMPTED" if event == "PREEMPTED" else None
        cloud["request"] = "SUSPENDED" if event == "SUSPENDED" else cloud["request"]
        leave(255)
    codes = []
    for worker in range(cloud["workers"]) if flags["--worker"] == "all" else [0]:
        if event == f"no way to {{worker}}":
            codes.append(255)
            continue
        for _ in range(2 if event == "sent twice" else 1):
            home = str(FAKE / f"home{{worker}}")
            environment = dict(os.environ, HOME=home, WORKER=str(worker))
            environment["PATH"] = f"{{FAKE}}/worker_bin:" + environment["PATH"]
            done = subprocess.run(["bash", "-c", flags["--command"]], cwd=home, env=environment)
        codes.append(done.returncode)
    leave(255 if event == "dropped" else next((code for code in codes if code), 0))
leave(0)
"""

# The Python here, of which only a plan is asked.
HERE = """\
import json, os, sys

with open({fake!r} + "/plans.jsonl", "a") as notes:
    notes.write(json.dumps(["here", os.getcwd(), sys.argv[1:]]) + "\\n")
print("the table of the plan")
sys.exit(os.path.exists({fake!r} + "/no plan"))
"""

# What mounts a bucket on a worker.
SHELL = {
    "sudo": 'echo "$*" >>{fake}/sudo; [ "$1" != umount ] || rm ~/mounted',
    "findmnt": "cat ~/mounted 2>/dev/null",
    "gcsfuse": 'echo "$*" >>{fake}/gcsfuse; [ "$3" != missing ] && echo "$3" >~/mounted',
}

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
    sys.exit((FAKE / f"no pip on {{worker}}").exists())
with open(FAKE / "environments.jsonl", "a") as notes:
    names = ("TFDS_DATA_DIR", "TOKEN", "TEXT")
    notes.write(json.dumps({{n: os.environ[n] for n in names if n in os.environ}}) + "\\n")
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


PROGRAMS = {"bin/gcloud": GCLOUD, "bin/python3": HERE, "worker_bin/python3.13": PYTHON}


class Cloud(Stage):
    """The stand-in cloud, its one VM, and a checkout to launch from."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.checkout = folder / "checkout"
        self.set(
            request=None, node=None, workers=1, queue=[], failure="", refusals=[], events=[],
            offline=False,
        )  # fmt: skip
        for worker in range(2):
            (folder / f"home{worker}").mkdir()
        self.codes([], [])
        for name, text in PROGRAMS.items():
            self.tool(name, text.format(fake=str(folder)))
        for name, text in SHELL.items():
            self.tool(f"worker_bin/{name}", text.format(fake=str(folder)), "/bin/sh")
        (self.checkout / "launch").mkdir(parents=True)
        for script in SCRIPTS:
            shutil.copy(LAUNCH / script, self.checkout / "launch")
        subprocess.run(["git", "init", "-q"], cwd=self.checkout, check=True)

    def ready(self, **facts):
        """A VM that is there."""
        self.set(request="ACTIVE", node="READY", **facts)

    def set(self, **facts):
        path = self.folder / "cloud.json"
        old = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(old | facts))

    def codes(self, *per_worker):
        """The exit codes of the program's next runs, for each worker."""
        for worker, codes in enumerate(per_worker):
            (self.folder / f"codes{worker}.json").write_text(json.dumps(codes))

    def start(self, *arguments, **environment) -> subprocess.Popen:
        return self.started(self.checkout / "launch" / "tpu_vm.sh", arguments, environment)

    def launch(self, *arguments, **environment) -> subprocess.CompletedProcess:
        return self.end(self.start(*arguments, **environment))

    def run(self, *flags, program=("--config=c.py",), **environment):
        return self.launch("run", "--name=vit", "--zone=z", *flags, "--", *program, **environment)

    @property
    def calls(self):
        return self.notes("calls")

    @property
    def verbs(self):
        return [verb for verb, _ in self.calls]

    @property
    def programs(self):
        """What the program was started with, each time: worker, folder, arguments."""
        return self.notes("python")

    @property
    def installs(self):
        return self.notes("pip")

    @property
    def plans(self):
        return [arguments for _, _, arguments in self.notes("plans")]

    @property
    def environments(self):
        return self.notes("environments")

    def text(self, name):
        path = self.folder / name
        return path.read_text() if path.exists() else ""
