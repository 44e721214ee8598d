"""What is given in place of a config file, and configs that cannot be read as values."""

import pytest

from vitdiff_jax import main
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment.rules import ConfigError

PLACEHOLDER = """from ml_collections import ConfigDict, config_dict
def get_config():
    return ConfigDict(dict(train=dict(steps=config_dict.required_placeholder(int))))
"""
LOOP = "def get_config():\n    c = {}\n    c['train'] = c\n    return c\n"
ENDLESS = "def get_config():\n    c = []\n    c.append(c)\n    return dict(train=dict(ema=c))\n"
IMPORTS = "import sys\nsys.path.insert(0, {home!r})\nimport helper_with_a_mistake\n"


def said(path):
    with pytest.raises(ConfigError) as error:
        config_lib.load(str(path))
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PLACEHOLDER, "config: a required_placeholder has no value"),
        (LOOP, "config: a section or list contains itself"),
        (ENDLESS, "config: a section or list contains itself"),
    ],
)
def test_values_that_are_none(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    assert said(tmp_path / "mine.py").startswith(message)


def test_a_syntax_error_in_a_file_that_it_imports(tmp_path):
    (tmp_path / "helper_with_a_mistake.py").write_text("\nx = (\n")
    (tmp_path / "mine.py").write_text(IMPORTS.format(home=str(tmp_path)))
    message = said(tmp_path / "mine.py")
    assert message.startswith(f"--config: {tmp_path / 'mine.py'}, line 3: SyntaxError: ")
    assert message.endswith(f"({tmp_path / 'helper_with_a_mistake.py'}, line 2)")


@pytest.mark.parametrize("name", ["config.json", "c.yaml", "c.yml", "c.toml"])
def test_other_kinds_of_config_files(tmp_path, name):
    (tmp_path / name).write_text('{"data": {"name": "digits", "path": null}}')
    assert said(tmp_path / name) == (
        f"--config: {tmp_path / name} is not Python with a get_config(), as configs/digits.py is;"
        " an existing run needs no --config, only --workdir=DIR"
    )


def test_a_folder_such_as_a_workdir(tmp_path):
    (tmp_path / "dits").mkdir()  # near a shipped config
    assert said(tmp_path / "dits").startswith(f"--config: {tmp_path / 'dits'} is a folder, not a ")


@pytest.mark.parametrize("name", ["Heun", "hein", "dpmpp-2m"])
def test_names_of_components_are_suggested(name):
    with pytest.raises(ConfigError, match=rf"'{name}'; did you mean (heun|dpmpp_2m)\?; available"):
        config_lib.complete({}, [f"--config.sample.sampler.name={name}"])


def test_an_override_with_one_dash_is_no_override(capsys):
    """It would be applied, but not compared with what the mode uses."""
    assert main.main(["-config.train.steps=9", "--mode=report", "--workdir=x"]) == 2
    assert "write --config.train.steps=9" in capsys.readouterr().err
