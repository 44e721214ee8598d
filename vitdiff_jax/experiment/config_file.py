"""Config files: Python that a person writes; each mistake in it becomes a line that says where."""

import contextlib
import difflib
import os
import pathlib
import runpy
import traceback
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from vitdiff_jax.experiment.rules import ConfigError
from vitdiff_jax.runtime import paths

PACKAGE = pathlib.Path(__file__).parents[1]
OTHERS = (".json", ".yaml", ".yml", ".toml")
"""Suffixes of other programs' config files, and of a workdir's config.json."""
SHIPPED = (PACKAGE, PACKAGE.parent)
"""Where the shipped `configs` folder is: inside the package (wheel) or beside it (checkout)."""


def run(path: paths.PathLike) -> dict[str, Any] | ConfigDict:
    """What get_config() of a file returns; "file.py:variant": get_config("variant").

    Raises ConfigError, with the file and the line where there is one.
    """
    name, _, variant = os.fspath(path).partition(":")
    places = [home / paths.expanded(name) for home in (pathlib.Path(), *SHIPPED)]
    file = next((str(place) for place in places if place.is_file()), None)
    if file is None or pathlib.Path(name).suffix in OTHERS:
        raise ConfigError(f"--config: {_why_not(name, places)}")
    with _located(file):
        get_config = runpy.run_path(file).get("get_config")
    if not callable(get_config):
        raise ConfigError(f"--config: {file} defines no get_config()")
    with _located(file):
        given = get_config(variant) if variant else get_config()
    if not isinstance(given, (dict, ConfigDict)):
        raise ConfigError(
            f"--config: get_config() of {file} returns {given!r:.60}, not a dict or ConfigDict; is"
            " there a `return config`, without a comma behind it?"
        )
    return given


@contextlib.contextmanager
def _located(file: str) -> Iterator[None]:
    """Turn whatever a config file raises into a ConfigError that says where."""
    try:
        yield
    except ConfigError:  # of a config that loads another
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((f.lineno for f in reversed(frames) if f.filename == file), None)
        if isinstance(error, SyntaxError):
            if error.filename == file:
                line = error.lineno
            elif error.filename:  # of a file that this one imports
                error.msg += f" ({error.filename}, line {error.lineno})"
            error = f"SyntaxError: {error.msg}"
        else:
            error = f"{type(error).__name__}: {' '.join(str(error).split())}"
        where = file if line is None else f"{file}, line {line}"
        raise ConfigError(f"--config: {where}: {error}") from None


def _why_not(name: str, places: list[pathlib.Path]) -> str:
    """Why this cannot be a config file."""
    run = "an existing run needs no --config, only --workdir=DIR"
    if any(place.is_dir() for place in places):
        return f"{name} is a folder, not a config file; {run}"
    if any(place.is_file() for place in places):
        return f"{name} is not Python with a get_config(), as configs/digits.py is; {run}"
    return f"there is no file {name}{_shipped_like(name)}"


def _shipped_like(name: str) -> str:
    """The nearest shipped config, for the message about a file that is not there."""
    known = {path.stem for home in SHIPPED for path in (home / "configs").glob("*.py")}
    near = difflib.get_close_matches(pathlib.Path(name).stem, known, 1, 0.6)
    return f"; did you mean configs/{near[0]}.py?" if near else ""
