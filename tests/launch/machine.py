"""A machine that is not there: stand-ins for what the launch scripts call, which note each call.

`nvidia-smi` prints what version 550 of it does, where it is asked for what the scripts ask.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

LAUNCH = Path(__file__).parents[2] / "launch"

SMI = """\
import sys
names = {names!r}
if {failure!r}:
    print({failure!r})
    sys.exit(9)
if "--query-gpu=index" in sys.argv:
    print(*range(len(names)), sep="\\n")
elif "--query-gpu=name" in sys.argv:
    print(*names, sep="\\n")
else:
    print("+-----------------------------------------------------------------------+")
    print("| NVIDIA-SMI 550.54.15    Driver Version: 550.54.15   CUDA Version: {cuda} |")
"""

# Python: it plans, makes virtual environments (of which it is the Python and the pip), and for
# each run of the program does what `ends` says: exit with a code, or wait for SIGTERM.
PYTHON = """\
import json, os, pathlib, shutil, signal, sys, time

FAKE = pathlib.Path({fake!r})
name, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
if arguments[:1] == ["-c"]:
    if "socket" in arguments[1]:
        print(12345)
    sys.exit(0)
if arguments[:2] == ["-m", "venv"]:
    folder = pathlib.Path(arguments[2], "bin")
    folder.mkdir(parents=True, exist_ok=True)
    for tool in ("python", "pip"):
        shutil.copy(sys.argv[0], folder / tool)
kind = "plan" if "--mode=plan" in arguments else name
names = ("CUDA_VISIBLE_DEVICES", "TFDS_DATA_DIR", "TOKEN", "JAX_LOCAL_DEVICE_IDS")
seen = {{n: os.environ[n] for n in names if n in os.environ}}
with open(FAKE / "calls.jsonl", "a") as notes:
    notes.write(json.dumps([kind, arguments, seen]) + "\\n")
if kind == "plan":
    print("the table of the plan")
    sys.exit((FAKE / "no plan").exists())
if kind == "pip":
    sys.exit((FAKE / "no pip").exists())
if arguments[:2] != ["-m", "vitdiff_jax.main"]:
    sys.exit(0)
process = ([a[10:] for a in arguments if a.startswith("--process=")] or ["0"])[0]
kept = FAKE / f"ends{{process}}.json"
ends = json.loads(kept.read_text())
end = ends.pop(0) if ends else 0
kept.write_text(json.dumps(ends))
print("hello from", process, flush=True)
if isinstance(end, str):
    signal.signal(signal.SIGTERM, signal.SIG_IGN if end == "hang" else lambda *_: sys.exit(75))
    (FAKE / f"waiting{{process}}").touch()
    time.sleep(60)
sys.exit(end)
"""


class Stage:
    """A folder of stand-ins, and the scripts that are started with them first in PATH."""

    def __init__(self, folder: Path):
        self.folder = folder

    def tool(self, name: str, text: str, interpreter=f"{sys.executable} -IS"):
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{interpreter}\n{text}")
        path.chmod(0o755)

    def started(self, script: Path, arguments, environment) -> subprocess.Popen:
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        clean = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "PYTHON")}
        return subprocess.Popen(
            ["bash", str(script), *arguments], cwd=LAUNCH.parent,
            env=clean | {"PATH": path, "POLL_SECONDS": "0"} | environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            # A shell's background jobs ignore Ctrl-C, and so would this, if the tests are one.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def end(self, process, timeout=60) -> subprocess.CompletedProcess:
        """Wait for it; what hangs must not outlive its test."""
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def notes(self, name):
        """What stand-ins have noted under a name."""
        path = self.folder / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Machine(Stage):
    """Where the scripts run."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        for name in ("python3", "python3.13"):
            self.tool(f"bin/{name}", PYTHON.format(fake=str(folder)))
        self.ends()

    def gpus(self, *names, cuda="12.4", failure=""):
        self.tool("bin/nvidia-smi", SMI.format(names=names, cuda=cuda, failure=failure))

    def ends(self, *per_process):
        """What becomes of the next runs, for each process: lists of exit codes, "stop", "hang"."""
        for process, ends in enumerate([*per_process, [], [], []]):
            (self.folder / f"ends{process}.json").write_text(json.dumps(ends))

    def start(self, script, *arguments, **environment) -> subprocess.Popen:
        return self.started(LAUNCH / script, arguments, environment)

    def run(self, script, *arguments, **environment) -> subprocess.CompletedProcess:
        return self.end(self.start(script, *arguments, **environment))

    @property
    def calls(self):
        """What was called: name or "plan", arguments, environment."""
        return self.notes("calls")

    def called(self, name):
        return [(arguments, seen) for kind, arguments, seen in self.calls if kind == name]
