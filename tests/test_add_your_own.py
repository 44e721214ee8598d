"""docs/add_your_own.md: its files are written as they stand there, and its commands run."""

import json
import re
import shlex
import sys

import pytest

from tests import tiny

PAGE = (tiny.REPOSITORY / "docs" / "add_your_own.md").read_text()
FILES = dict(re.findall(r"^`(my/\w+\.py)`\n\n```python\n(.*?)^```$", PAGE, re.M | re.S))
COMMANDS = re.findall(r"^python -m vitdiff_jax\.main (.*)$", PAGE, re.M)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """That of the page's run, after all of its commands in turn."""
    place = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(place)  # as `python -m` does
        (place / "my").mkdir()
        for name, text in FILES.items():
            (place / name).write_text(text)
        for command in COMMANDS:
            assert tiny.call(*shlex.split(command)) == 0, command
        yield place / "runs" / "stripes"
    for name in [name for name in sys.modules if name.split(".")[0] == "my"]:
        del sys.modules[name]


def test_the_page_has_an_example_of_each_kind():
    defined = re.findall(r"^(?:def|class) (\w+)", "".join(FILES.values()), re.M)
    assert {"dataset", "Model", "sample", "make", "Metric", "restore"} <= set(defined)
    assert PAGE.count("```python") == len(FILES)
    assert len(COMMANDS) == 4


@pytest.mark.parametrize("name", FILES)
def test_examples_are_short(name):
    assert len([line for line in FILES[name].splitlines() if line.strip()]) <= 25


@pytest.mark.slow
def test_the_run_learns_stripes(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] / 2
    (row,) = json.loads((workdir / "evaluation.json").read_text())["rows"]
    assert row["sampler"] == "my.jump"
    assert row["network_calls"] == 10
    assert row["results"]["contrast/extreme"]["value"] > 0.5  # of noise it is 0.25
    assert len(list((workdir / "samples").glob("*-n4.png"))) == 1


@pytest.mark.slow
def test_the_damage_is_repaired(workdir):
    rows = json.loads((workdir / "restoration.json").read_text())["rows"]
    found = {row["method"]: row["results"]["psnr/uint8"]["value"] for row in rows}
    degraded = found.pop("degraded")
    assert found.keys() == {"my.gradient_step:step_size=0.8", "diffpir"}
    assert min(found.values()) > degraded


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "name", "said"),
    [
        ("methods", "my.scanline", "error: method: cannot use 'my.scanline': .*No module named"),
        ("methods", "my.jump", "error: method: cannot use 'my.jump': .*it has no restore"),
        ("tasks", "my.scanline", "error: .*my.scanline.*No module named"),
        ("tasks", "my.jump", "error: .*there is no operator 'my.jump'"),
    ],
)
def test_a_module_that_is_not_there_or_lacks_its_function_is_named(
    workdir, capsys, what, name, said
):
    flags = ["--mode=restore", f"--config.restore.{what}=('{name}',)"]
    assert tiny.call("--config=my/run.py", f"--workdir={workdir}", *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(said, line)
