"""What the tests of every kind of bucket share."""

import pytest

from tests import tiny
from tests.data import homes
from vitdiff_jax.runtime import paths

CHANGES = dict(
    model=dict(depth=1, class_tokens=0), train=dict(steps=60),
    log=dict(every=1, sample_every=30), evaluate=dict(metrics=("pixel_frechet",), images=8),
)  # fmt: skip


@pytest.fixture(scope="module", name="config")
def config_file(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("config") / "tiny.py", **CHANGES)


@pytest.fixture(scope="module", name="unbroken")
def unbroken_run(tmp_path_factory, config):
    """The same in a folder, without a break."""
    workdir = tmp_path_factory.mktemp("runs")
    assert tiny.call(config, f"--workdir={workdir}") == 0
    return workdir


def killed_and_resumed(address, config, last):
    """The workdir of a run that was killed after step 10, and then went on; last: of its files."""
    workdir = paths.resolve(address)
    flags = config, f"--workdir={workdir}"
    with tiny.started("-m", "vitdiff_jax.main", *flags) as process:
        tiny.until((workdir / "checkpoints" / "10" / last).exists, process)
        process.kill()
        process.wait()
    assert 10 <= len(tiny.logged(workdir)) < 60
    code, out, _ = homes.run(*flags)
    assert code == 0, out
    assert [line for line in out.splitlines() if line.startswith("resuming at step ")] != []
    return workdir


def named(folder):
    return sorted(path.name for path in folder.iterdir())


def refused(capsys, *flags):
    """(exit code, the only line) of a command that does not work."""
    code = tiny.call(*flags)
    (line,) = capsys.readouterr().err.splitlines()
    return code, line
