"""The Dockerfiles, as far as can be told without Docker: what they copy, which extras they name."""

import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from tests.launch.machine import LAUNCH
from tests.parts import only

ROOT = LAUNCH.parent


@pytest.mark.parametrize(
    ("name", "extra"), only([("tpu", "tpu")], [("tpu", "tpu"), ("cuda", "cuda12")])
)
def test_what_is_copied_can_be_installed(tmp_path, name, extra):
    text = (LAUNCH / f"Dockerfile.{name}").read_text()
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    before = lines[: next(i for i, line in enumerate(lines) if line[0] == "RUN")]
    for _, *sources, target in (line for line in before if line[0] == "COPY"):
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / target)
            else:
                shutil.copy(ROOT / source, tmp_path / target)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())
    assert re.search(rf'pip install \S+ "\.\[{extra}\]"', text)
    assert extra in project["project"]["optional-dependencies"]
    for file in project["project"]["readme"], *project["project"]["license-files"]:
        assert (tmp_path / file).exists()
    assert (tmp_path / project["tool"]["hatch"]["version"]["path"]).exists()
    config = ROOT / "configs" / "digits.py"
    done = subprocess.run(
        [sys.executable, "-m", "vitdiff_jax.main", f"--config={config}", "--mode=nothing"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert "--mode: 'nothing' is not one of train, " in done.stderr
