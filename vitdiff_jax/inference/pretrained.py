"""Trained models that come with the package: `pretrained:NAME` in place of a workdir.

Each is two files of vitdiff_jax/pretrained/: NAME.safetensors, a file of `--mode=export` with
parameters of half precision, and NAME.json: its SHA-256, the licence, what it was trained on, and
what was measured. `modes.export.ship` makes both.

What the command makes with such a model goes into runs/pretrained-NAME of the current folder, a
workdir like any other but for its parameters: a file `MARK` says whose they are.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment.build import config_errors
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.interop import exported
from vitdiff_jax.interop.weights import WeightsError
from vitdiff_jax.runtime import logs, parallel, paths, tables

PREFIX = "pretrained:"
DEFAULTS = {"restore": "photos"}
"""By mode, the model of a command without --config and --workdir."""
FOLDER = pathlib.Path(__file__).parents[1] / "pretrained"
MARK = "pretrained.json"
"""In a workdir of results: the model that they are of."""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model of the package, whose file is intact. facts: NAME.json. about: `exported.about`."""

    name: str
    path: pathlib.Path
    facts: Mapping[str, Any]
    about: Mapping[str, Any]

    @property
    def origin(self) -> dict[str, Any]:
        """For records of results."""
        return {"pretrained": {"name": self.name, "sha256": self.facts["sha256"]}}

    @property
    def home(self) -> epath.Path:
        """The workdir of its results."""
        return epath.Path("runs") / f"pretrained-{self.name}"

    def config(
        self, overrides: Sequence[str] = (), trusted: ConfigDict | None = None
    ) -> ConfigDict:
        """As it was trained, see `experiment.config.read`."""
        return config_lib.stored(self.about["config"], self.path, overrides, trusted)

    def params(self) -> dict[str, Any]:
        """Nested dicts of float32 arrays."""
        return exported.load(self.path)


def names() -> list[str]:
    """Of all models of the package."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def find(workdir: paths.PathLike) -> Pretrained | None:
    """The model that "pretrained:NAME", or a workdir of its results, stands for; None: neither.

    Raises ConfigError for a name that there is not, WeightsError for a damaged file.
    """
    text = os.fspath(workdir)
    if not text.startswith(PREFIX):
        if paths.remote(text) or not (mark := paths.resolve(text) / MARK).exists():
            return None
        with config_errors(f"{mark.parent}/"):
            text = f"{PREFIX}{tables.read(mark).get('name')}"
    name = text.removeprefix(PREFIX)
    if name not in names():
        known = ", ".join(f"{PREFIX}{name}" for name in names())
        raise ConfigError(f"{text}: there is no such model in this package; it has {known}")
    path, facts = FOLDER / f"{name}.safetensors", tables.read(epath.Path(FOLDER) / f"{name}.json")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != facts["sha256"]:
        raise WeightsError(
            f"{path}: damaged: its SHA-256 is {found[:8]}..., not {facts['sha256'][:8]}...;"
            " install the package again"
        )
    about = exported.about(path)
    assert about is not None
    return Pretrained(name, path, facts, about)


def of_command(mode: str, config: str | None, workdir: str | None) -> Pretrained | None:
    """The model that a command takes, by its --mode, --config and --workdir; as `find`."""
    if config is None and workdir is None and mode in DEFAULTS:
        workdir = f"{PREFIX}{DEFAULTS[mode]}"
    if workdir is None or not workdir.startswith(PREFIX):
        return None
    if mode in ("train", "import"):
        check_trainable(workdir)
    return find(workdir)


def check_trainable(workdir: paths.PathLike) -> None:
    """Raise ConfigError for a model of the package, or a workdir of its results."""
    if shipped := find(workdir):
        raise ConfigError(
            f"{os.fspath(workdir)}: is a model of the package; use another --workdir, and to train"
            f" it further --config.train.init_from={PREFIX}{shipped.name}"
        )


@contextlib.contextmanager
def opened(shipped: Pretrained) -> Iterator[None]:
    """Make the workdir of its results, which is removed again if it gets none.

    Raises ConfigError if it holds something else, OSError if it cannot be written.
    """
    home, first = shipped.home, jax.process_index() == 0
    made = [folder for folder in (home, home.parent) if not folder.exists()]
    if first:
        if home not in made and not (home / MARK).exists() and any(home.iterdir()):
            raise ConfigError(
                f"{home}: is for results of {PREFIX}{shipped.name}, but holds something else;"
                " move it, or change to another folder"
            )
        _write_marks(shipped)
    parallel.wait_for_first()
    logs.say(
        f"{PREFIX}{shipped.name}: step {shipped.about['step']}, {shipped.facts['licence']};"
        f" results go into {home}"
    )
    try:
        yield
    finally:
        if first:
            _close(shipped, made)


def _write_marks(shipped: Pretrained) -> None:
    """The files that make a folder the workdir of a model's results."""
    try:
        shipped.home.mkdir(parents=True, exist_ok=True)
        tables.write(shipped.home / MARK, {"name": shipped.name})
        config_lib.save(shipped.config(), shipped.home / "config.json")
    except OSError as error:
        raise OSError(
            f"{shipped.home}: cannot be written ({error.strerror}), and results of"
            f" {PREFIX}{shipped.name} go there; change to a folder of yours"
        ) from error


def _close(shipped: Pretrained, made: Sequence[epath.Path]) -> None:
    """Remove the folders that were made for results, if there are none; else say whose they are."""
    marks = [shipped.home / MARK, shipped.home / "config.json"]
    if shipped.home in made and set(shipped.home.iterdir()) <= set(marks):
        for path in marks:
            path.unlink(missing_ok=True)
        for folder in made:
            paths.remove_empty(folder)
    else:  # another command may have removed the marks, having no results
        _write_marks(shipped)
