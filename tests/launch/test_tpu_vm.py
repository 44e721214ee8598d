"""The Cloud TPU launcher against a stand-in for gcloud, see `cloud`."""

import itertools
import os
import shlex
import signal
import stat
import subprocess
import time

import pytest

from tests.launch.cloud import Cloud
from tests.parts import only, quick

LOOK = ["describe request", "describe"]
CREATE = ["describe request", "create request", *LOOK]
RUN = ["scp", "ssh", "ssh"]


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
    assert cloud.verbs == [*CREATE, *RUN]
    assert cloud.calls[1][1] == [
        "vit", "--node-id=vit", "--accelerator-type=v6e-8", "--runtime-version=v2-alpha-tpuv6e",
        "--spot", "--zone=z", "--quiet", "--project=p",
    ]  # fmt: skip
    for verb, words in cloud.calls[4:]:
        assert "--worker=all" in words, verb
    home = cloud.folder / "home0"
    there = {str(path.relative_to(home / "vitdiff_jax")) for path in home.glob("vitdiff_jax/**/*")}
    scripts = {f"launch/{name}.sh" for name in ("shared", "tpu_vm", "tpu_worker")}
    assert there == {"launch", *scripts, ".gitignore", "new config.py"}
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
    assert f"--runtime-version={version} " in done.stdout


def test_dry_run_prints_every_command_and_runs_none(cloud):
    done = cloud.run("--dry-run", program=("--config=a b.py",))
    assert done.returncode == 0
    assert cloud.calls == []
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    verbs = [line[3:5] for line in lines if line[0] == "gcloud"]
    request, node = "queued-resources", "tpu-vm"
    assert verbs == [
        [request, "describe"], [request, "create"], [request, "describe"], [node, "describe"],
        [node, "scp"], [node, "ssh"], [node, "ssh"],
    ]  # fmt: skip
    assert "--mode=plan" in lines[1]
    assert lines[5][0] == "git"
    assert "tar" in lines[5]
    assert "tpu_worker.sh install" in " ".join(lines[7])
    assert r"-m vitdiff_jax.main --config=a\ b.py" in " ".join(lines[8])
    assert cloud.plans == []


def test_dry_run_of_delete_and_status(cloud):
    look = ["describe", "describe"]
    for action, verbs in ("delete", [*look, "delete"]), ("status", look), ("log", ["ssh"]):
        done = cloud.launch("--dry-run", action, "--name=vit", "--zone=z")
        assert [line.split()[4] for line in done.stdout.splitlines()] == verbs
    assert cloud.calls == []


def test_a_ready_vm_is_reused(cloud):
    cloud.ready()
    assert cloud.run().returncode == 0
    assert cloud.verbs == [*LOOK, *RUN]
    assert cloud.plans == []  # nothing is created


@pytest.mark.slow
def test_a_vm_in_creation_is_waited_for(cloud):
    waits = ["WAITING_FOR_RESOURCES"] * 3 + ["PROVISIONING", "ACTIVE"]
    cloud.set(request="ACCEPTED", queue=waits)
    done = cloud.run()
    assert done.returncode == 0
    assert cloud.verbs == ["describe request"] * 4 + [*LOOK, *RUN]
    assert done.stderr.count("WAITING_FOR_RESOURCES; waiting") == 1


@pytest.mark.parametrize(
    ("request_", "node", "verbs"),
    only(
        [("SUSPENDED", None, ["describe request"])],
        [
            ("SUSPENDED", None, ["describe request"]),
            *(("ACTIVE", state, LOOK) for state in ("PREEMPTED", "TERMINATED", None)),
        ],
    ),
)
def test_a_dead_vm_is_made_anew(cloud, request_, node, verbs):
    """And what is left of a preempted one after a while, which would count against the quota."""
    cloud.set(request=request_, node=node)
    assert cloud.run().returncode == 0
    assert cloud.verbs == [*verbs, "delete request", *CREATE, *RUN]


def test_a_stopped_vm_is_left_alone(cloud):
    """Somebody stopped it on purpose, and its disk may hold what exists nowhere else."""
    cloud.set(request="ACTIVE", node="STOPPED")
    done = cloud.run()
    assert done.returncode == 1
    assert "STOPPED" in done.stderr
    assert cloud.verbs == LOOK


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "during"),
    only(
        [("PREEMPTED", "run"), ("vanished", "install")],
        itertools.product(["PREEMPTED", "SUSPENDED", "vanished"], ["install", "run"]),
    ),
)
def test_preemption(cloud, event, during):
    cloud.ready(events=[(during, event)])
    done = cloud.run()
    assert done.returncode == 0, done.stderr
    assert cloud.verbs.count("delete request") == 1
    assert cloud.verbs.count("create request") == 1
    assert len(cloud.installs) == (2 if during == "run" else 1)  # the new VM has an empty disk
    assert len(cloud.programs) == 1


GAVE_UP = "tpu_vm: gave up after 2 retries without progress"
CODES = [  # of the program, and what comes of them
    ([75, 75, 0], {}, 0, ""),
    ([75] * 3, {}, 75, GAVE_UP),
    ([75] * 3 + [0], dict(PROGRESS_SECONDS="0"), 0, ""),
    *(([code], {}, code, f"failed with exit code {code}") for code in (1, 3, 137)),
]


@pytest.mark.parametrize(("codes", "environment", "end", "said"), only([CODES[0], CODES[4]], CODES))
def test_exit_75_means_run_me_again(cloud, codes, environment, end, said):
    """So often without progress; any other failure is passed on."""
    cloud.ready()
    cloud.codes(codes)
    done = cloud.run("--retries=2", **environment)
    assert done.returncode == end
    assert len(cloud.programs) == len(codes)
    assert len(cloud.installs) == 1
    assert said in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("event", quick(["sent twice"], ["dropped", "sent twice"]))
def test_a_broken_connection_does_not_start_the_program_twice(cloud, event):
    """gcloud itself sends the command again, up to ten times, to a worker whose ssh broke off."""
    cloud.ready(events=[("run", event)])
    assert cloud.run().returncode == 0
    assert len(cloud.programs) == 1


@pytest.mark.parametrize(
    ("codes", "end"), only([((0, 3), 3)], [((0, 3), 3), ((3, 75), 0), ((0, 0), 0)])
)
def test_all_workers_count(cloud, codes, end):
    """A worker that saved and asks for another run outweighs its peers, who died of missing it."""
    cloud.ready(workers=2)
    cloud.codes(*([code, 0] for code in codes))
    assert cloud.run().returncode == end
    assert {worker for worker, *_ in cloud.programs} == {"0", "1"}
    assert len(cloud.programs) == (4 if 75 in codes else 2)


@pytest.mark.slow
def test_an_earlier_run_is_stopped_first(cloud):
    """Ctrl-C leaves the program going; two of them would fight for the TPU."""
    cloud.ready()
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


@pytest.mark.parametrize(("installed", "end"), only([(False, 1)], [(False, 1), (True, 0)]))
def test_pip_failing_on_one_worker(cloud, installed, end):
    cloud.ready(workers=2)
    if not installed:
        (cloud.folder / "no pip on 1").touch()
    done = cloud.run()
    assert done.returncode == end
    assert len(cloud.programs) == (2 if installed else 0)
    assert ("pip cannot install it" in done.stderr) == (not installed)


@pytest.mark.slow
@pytest.mark.parametrize("during", ["install", "run"])
def test_no_connection_to_one_worker(cloud, during):
    """That is tried again; the program of the other one, which has begun, is not started twice."""
    cloud.ready(workers=2, events=[(during, "no way to 1")])
    done = cloud.run()
    assert done.returncode == 0, done.stderr
    assert sorted(worker for worker, *_ in cloud.programs) == ["0", "1"]
    assert cloud.verbs.count("create request") == 0


QUOTA = "RESOURCE_EXHAUSTED: Quota limit 'TPUV5s' has been\nexceeded. Limit: 0 in zone z."
FULL = '{\n  "code": 8,\n  "message": "There is no more capacity in the zone"\n}'


def test_a_refused_quota_is_one_clear_line(cloud):
    cloud.set(refusals=[QUOTA] * 3)
    done = cloud.run("--no-plan")
    assert done.returncode == 1
    assert cloud.verbs == ["describe request", "create request"]
    _creating, line = done.stderr.splitlines()
    assert "Quota limit 'TPUV5s' has been exceeded" in line
    assert "--zone" in line


def test_a_quota_refused_in_the_queue(cloud):
    """The request is deleted: failed ones count against the quota, too."""
    cloud.set(queue=["WAITING_FOR_RESOURCES", "FAILED"], failure=QUOTA, request="ACCEPTED")
    done = cloud.run()
    assert done.returncode == 1
    assert cloud.verbs == ["describe request"] * 3 + ["delete request"]
    assert "Quota limit 'TPUV5s' has been exceeded" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_zone_without_capacity_is_asked_again(cloud):
    cloud.set(refusals=[FULL] * 2, queue=["FAILED"], request="ACCEPTED", failure=FULL)
    assert cloud.run().returncode == 0
    assert cloud.verbs.count("create request") == 3
    assert len(cloud.plans) == 1
    cloud.set(request=None, node=None, refusals=[FULL] * 9)
    assert cloud.run("--retries=1").returncode == 75


def test_a_worker_without_a_fit_python_is_one_clear_line(cloud):
    cloud.ready()
    for name in ("python3.13", "python3.12", "python3.11", "python3"):
        cloud.tool(f"worker_bin/{name}", "exit 1\n", "/bin/sh")
    done = cloud.run()
    assert done.returncode == 1
    assert "no Python 3.11 or newer" in done.stderr
    assert cloud.programs == []


def test_status(cloud):
    for request, node, word in (
        (None, None, "NOT_FOUND"),
        ("WAITING_FOR_RESOURCES", None, "WAITING_FOR_RESOURCES"),
        ("ACTIVE", "PREEMPTED", "PREEMPTED"),
    ):
        cloud.set(request=request, node=node)
        done = cloud.launch("status", "--name=vit", "--zone=z")
        assert (done.returncode, done.stdout) == (0, word + "\n")


@pytest.mark.parametrize(("request_", "node"), [("ACTIVE", "READY"), ("FAILED", None)])
def test_delete(cloud, request_, node):
    cloud.set(request=request_, node=node)
    assert cloud.launch("delete", "--name=vit", "--zone=z").returncode == 0
    assert cloud.calls[-1] == ["delete request", ["vit", "--force", "--zone=z", "--quiet"]]
    assert cloud.launch("delete", "--name=vit", "--zone=z").returncode == 0
    assert cloud.verbs[-2:] == ["delete request", "describe request"]


@pytest.mark.slow
def test_log_shows_the_newest_run_again(cloud):
    assert cloud.launch("log", "--name=vit", "--zone=z").returncode == 1
    cloud.ready()
    cloud.codes([75, 3])
    assert cloud.run().returncode == 3
    done = cloud.launch("log", "--name=vit", "--zone=z")
    assert (done.returncode, done.stdout) == (3, "hello from worker 0\n")
    assert len(cloud.programs) == 2


@pytest.mark.parametrize(
    ("kind", "slice_"),
    only(
        [("v5litepod-8", "v5e:2x4"), ("v6e-32", "v6e:4x8"), ("v5p-64", "v5p:2x4x4")],
        [
            ("v5litepod-1", "v5e:1x1"), ("v5litepod-8", "v5e:2x4"), ("v5litepod-16", "v5e:4x4"),
            ("v5litepod-256", "v5e:16x16"), ("v6e-32", "v6e:4x8"), ("v5p-8", "v5p:2x2x1"),
            ("v5p-16", "v5p:2x2x2"), ("v5p-64", "v5p:2x4x4"), ("v5p-256", "v5p:4x4x8"),
        ],
    ),
)  # fmt: skip
def test_the_plan_is_shown_first(cloud, kind, slice_):
    cloud.set(refusals=[QUOTA])
    program = ("--config=c.py", "--profile=1:2", "--config.train.steps=3", "--workdir=/mnt/w")
    done = cloud.run(f"--type={kind}", program=program)
    assert done.stderr.index("the table of the plan") < done.stderr.index("queueing")
    *asked, workdir, mode, topology = cloud.plans[0]
    assert asked == ["-m", "vitdiff_jax.main", *(program[0], *program[2:])]
    assert workdir.startswith("--workdir=/")
    assert (mode, topology) == ("--mode=plan", f"--topology={slice_}")


def test_without_a_plan_nothing_is_created(cloud):
    (cloud.folder / "no plan").touch()
    done = cloud.run()
    assert done.returncode == 2
    assert "--no-plan" in done.stderr.splitlines()[-1]
    assert cloud.verbs == ["describe request"]
    assert cloud.run("--no-plan").returncode == 0


@pytest.mark.parametrize(
    ("kind", "program", "said"),
    only(
        [("v4-8", (), "no plan for v4-8")],
        [("v4-8", (), "no plan for v4-8"), ("v6e-8", ("--mode=sample",), "")],
    ),
)
def test_what_is_not_planned(cloud, kind, program, said):
    done = cloud.run(f"--type={kind}", program=("--config=c.py", *program))
    assert done.returncode == 0
    assert said in done.stderr
    assert cloud.plans == []


def test_secrets_reach_the_program_and_nothing_else(cloud, tmp_path):
    secrets = tmp_path / "secrets"
    secrets.write_text("# keys\n\nTOKEN=hunter2 $HOME 'x'\nTEXT=last")
    flags = (f"--env-file={secrets}", "--data=/mnt/bucket/tfds")

    done = cloud.run("--dry-run", *flags)
    assert "TOKEN=***" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr

    done = cloud.run(*flags)
    assert done.returncode == 0, done.stderr
    assert cloud.environments == [
        {"TOKEN": "hunter2 $HOME 'x'", "TEXT": "last", "TFDS_DATA_DIR": "/mnt/bucket/tfds"}
    ]
    assert "hunter2" not in done.stdout + done.stderr + cloud.text("calls.jsonl")
    kept = cloud.folder / "home0" / "vitdiff_env"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert cloud.run().returncode == 0
    assert cloud.environments[1] == {}  # of an earlier launch nothing stays


@pytest.mark.parametrize(
    ("text", "said"), [("A=1\nhunter2\n", "line 2"), (None, "no such readable")]
)
def test_a_bad_env_file_is_one_clear_line(cloud, tmp_path, text, said):
    if text:
        (tmp_path / "secrets").write_text(text)
    done = cloud.run(f"--env-file={tmp_path / 'secrets'}")
    assert done.returncode == 2
    assert said in done.stderr
    assert "hunter2" not in done.stderr
    assert cloud.calls == []


@pytest.mark.slow
def test_the_bucket_is_mounted_on_every_worker(cloud):
    cloud.ready(workers=2)
    assert cloud.run("--bucket=gs://mine").returncode == 0
    mount = "--implicit-dirs --rename-dir-limit=1000000 mine /mnt/bucket\n"
    assert cloud.text("gcsfuse") == mount * 2
    assert cloud.run("--bucket=mine").returncode == 0  # it is there
    assert cloud.text("gcsfuse") == mount * 2
    assert cloud.run("--bucket=other").returncode == 0
    assert cloud.text("sudo").count("umount /mnt/bucket") == 2
    assert cloud.text("gcsfuse").count("other") == 2


def test_a_bucket_that_is_not_there_is_one_clear_line(cloud):
    cloud.ready()
    done = cloud.run("--bucket=missing")
    assert done.returncode == 1
    assert "cannot mount gs://missing" in done.stderr
    assert cloud.programs == []


@pytest.mark.parametrize("action", ["run", "status", "delete"])
def test_a_cloud_out_of_reach_is_one_clear_line(cloud, action):
    """Above all it is no missing VM: that one would be created, and billed."""
    cloud.set(offline=True)
    done = cloud.launch(action, "--name=vit", "--zone=z", "--", "--config=c.py")
    assert done.returncode == 1
    assert cloud.verbs == ["describe request"]
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
    cloud.ready()
    program = ("--config=a b/c.py", "it's", '"quoted"', "$HOME `x` \\ * ;&|", "two\nlines", "")
    assert cloud.run(program=program).returncode == 0
    assert cloud.programs[0][2] == ["-m", "vitdiff_jax.main", *program]


def test_help_is_the_header(cloud):
    done = cloud.launch("--help")
    assert done.returncode == 0
    assert "Exit codes:" in done.stdout
    assert "set -euo" not in done.stdout
