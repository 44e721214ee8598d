"""What the notebook's first cell does to the packages of a machine, by the real pip."""

import json
import pathlib
import shutil
import subprocess
import sys
import tomllib
import zipfile

import packaging
import pytest
from packaging.requirements import Requirement

from tests import tiny
from tests.launch.test_colab import source

pytestmark = pytest.mark.slow  # real pip takes seconds


def wheel(folder, name, version, *requires):
    """A package without anything in it but what it requires."""
    stem = f"{name.replace('-', '_')}-{version}"
    needs = "".join(f"Requires-Dist: {need}\n" for need in requires)
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        for file, text in files.items():
            archive.writestr(f"{stem}.dist-info/{file}", text)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Stand-ins for all that the package requires, as pip finds them; the newest do not fit all."""
    folder = tmp_path_factory.mktemp("index")
    project = tomllib.loads((tiny.REPOSITORY / "pyproject.toml").read_text())["project"]
    needs = {Requirement(need).name: Requirement(need) for need in project["dependencies"]}
    also = {"flax": ["jax>=0.8"], "clu": ["protobuf>=5"]}
    wheel(folder, "vitdiff-jax", "0.1.0", *project["dependencies"])
    for name, need in needs.items():
        least = [bound.version for bound in need.specifier if bound.operator == ">="]
        wheel(folder, name, *least, *also.get(name, []))
    wheel(folder, "flax", "0.12.9", "jax>=0.10.2")  # with it alone a newer jax would come
    for version in ("0.7.2", "0.9.0", "0.10.2"):
        wheel(folder, "jax", version, f"jaxlib=={version}", "numpy>=2.0")
        wheel(folder, "jaxlib", version)
    wheel(folder, "numpy", "2.4")
    wheel(folder, "protobuf", "4.0")
    wheel(folder, "protobuf", "6.0")
    return folder


@pytest.fixture(scope="module")
def venv(tmp_path_factory):
    """A virtual environment to copy, with nothing but pip."""
    folder = tmp_path_factory.mktemp("machine") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder


@pytest.fixture
def machine(tmp_path, index, venv, monkeypatch):
    """(has(packages), run(), versions()) of a machine with a Python of its own and that index."""
    python = shutil.copytree(venv, tmp_path / "venv", symlinks=True) / "bin/python"
    (tmp_path / "path").mkdir()
    (tmp_path / "path/packaging").symlink_to(pathlib.Path(packaging.__file__).parent)
    for name, value in dict(
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=index,
        PIP_CONFIG_FILE="/dev/null",
        PIP_QUIET="1",  # a machine may have been told so; pip's lists are empty then
        PYTHONPATH="path",
    ).items():
        monkeypatch.setenv(name, str(value))

    def call(*arguments):
        return subprocess.run(
            [python, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )

    def versions():
        found = json.loads(call("-m", "pip", "-v", "list", "--format=json").stdout)
        return {package["name"].lower(): package["version"] for package in found}

    def has(*packages):
        done = call("-m", "pip", "install", *packages)
        assert done.returncode == 0, done.stderr

    def run(where=index / "vitdiff_jax-0.1.0-py3-none-any.whl"):
        return call("-c", source("# @title Install").replace('SOURCE = ""', f'SOURCE = "{where}"'))

    return has, run, versions


def test_what_a_machine_has_keeps_its_version(machine):
    has, run, versions = machine
    has("jax==0.9.0", "numpy==2.0", "tensorboardX", "protobuf==6.0")
    before = versions()
    done = run()
    assert done.returncode == 0, done.stderr
    after = versions()
    assert {name: after[name] for name in before} == before
    assert (after["flax"], after["vitdiff-jax"]) == ("0.12.0", "0.1.0")
    assert f"{len(before) + 1} packages stay as they were" in done.stdout
    assert "were too old" not in done.stdout
    again = run()
    assert again.stdout == "vitdiff_jax 0.1.0 is installed\n"


def test_where_something_else_must_change_the_core_does_not_and_it_is_said(machine):
    has, run, versions = machine
    has("jax==0.9.0", "numpy==2.0", "flax==0.12.0", "protobuf==4.0")
    done = run()
    assert done.returncode == 0, done.stderr
    after = versions()
    assert (after["jax"], after["jaxlib"], after["numpy"]) == ("0.9.0", "0.9.0", "2.0")
    assert "were too old: protobuf 4.0 -> 6.0" in done.stdout


def test_a_jax_that_is_too_old_is_named_and_stays_however_often_one_tries(machine):
    has, run, versions = machine
    has("jax==0.7.2", "numpy==2.0")
    for _ in range(2):
        done = run()
        assert "this machine has jax 0.7.2, and vitdiff_jax needs" in done.stderr
        assert '%pip install "jax[cuda12]<0.12"' in done.stderr
        assert versions()["jax"] == "0.7.2"


def test_nothing_to_install_is_said(machine):
    _, run, _ = machine
    assert run("").stderr.endswith("say above, in SOURCE, what to install\n")
