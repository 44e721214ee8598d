"""Starting from given parameters: `config.train.init_from`, with a fresh optimiser.

A parameter of the same shape is kept, positions learned on a grid of patches are resized to another
grid, classes and attributes are kept by their names, and what is new or of another shape (the
patches of other channels, more blocks) keeps its first, random value. All that is said before
training.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment.build import Experiment, named
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import model as model_lib
from vitdiff_jax.interop import families
from vitdiff_jax.runtime import logs, parallel, paths
from vitdiff_jax.training.step import TrainState

GRID = "positions"
"""Parameters of this name with three axes are learned positions [rows, columns, width]."""
KEPT, PARTLY, RESIZED, NEW = "kept", "kept in part, by name", "resized", "newly initialised"


def check(config: ConfigDict, workdir: epath.Path) -> None:
    """Refuse a source that is not there before the new workdir is; a run that goes on needs none.

    Raises ConfigError.
    """
    source = config.train.init_from
    if source is None or (workdir / "checkpoints").exists():
        return
    path = paths.reached(source)
    with named("config.train.init_from: "):
        if path.is_file():
            raise ConfigError(f"{path} is a file; --mode=import makes a workdir of it")
        config_lib.read(path / "config.json")
        kept = path / "checkpoints"
        if not (kept.is_dir() and any(step.name.isdigit() for step in kept.iterdir())):
            raise ConfigError(f"{path}: no checkpoints here")


def start(state: TrainState, experiment: Experiment, workdir: epath.Path) -> TrainState:
    """A first state with the parameters of the model in config.train.init_from, averages too.

    They are those of the average that its config.sample names. Their licence comes along.
    """
    source = paths.reached(experiment.config.train.init_from)
    with named("config.train.init_from: "):
        own = config_lib.read(source / "config.json")
        own.sample.guide_with = None  # only its parameters count
        model = model_lib.load(source, own)
    given = families.flatten(families.unrolled(jax.tree.map(np.asarray, model.params)))
    whole = jax.jit(lambda a: a, out_shardings=parallel.replicated(model.mesh))(state.params)
    first = families.flatten(families.unrolled(jax.tree.map(np.asarray, whole)))
    rows = _rows(experiment.conditions), _rows(model.experiment.conditions)
    found, lists = {}, {KEPT: [], PARTLY: [], RESIZED: [], NEW: []}
    for name, value in first.items():
        of_name = rows[0].get(name), rows[1].get(name)
        kind, found[name] = _fitted(name, value, given.get(name), *of_name)
        lists[kind].append(name)
    logs.say(f"starting from {source}, step {model.step}")
    for kind, names in lists.items():
        _say(kind, names, first)
    _say("left out", [name for name in given if name not in first], given)
    _compare(model.experiment.config, experiment.config)
    if (source / model_lib.LICENCE).is_file() and jax.process_index() == 0:
        (source / model_lib.LICENCE).copy(workdir / model_lib.LICENCE, overwrite=True)
    params = families.rolled(families.nested(found), state.params)
    params = jax.tree.map(lambda a, old: jax.device_put(a, old.sharding), params, state.params)
    copies = {name: jax.tree.map(jnp.copy, params) for name in state.ema}
    return state.replace(params=params, ema=copies)


def _fitted(
    name: str, first: np.ndarray, given: np.ndarray | None, rows: Any, given_rows: Any
) -> tuple[str, np.ndarray]:
    """What becomes of a parameter, and its value; rows: what those of a table stand for."""
    if given is None:
        return NEW, first
    if rows != given_rows and given.shape[1:] == first.shape[1:]:
        here = [(i, given_rows.index(row)) for i, row in enumerate(rows) if row in given_rows]
        found = first.copy()
        for i, old in here:
            found[i] = given[old]
        return PARTLY if here else NEW, found
    if given.shape == first.shape:
        return KEPT, given
    on_grid = name.rpartition("/")[2] == GRID and given.ndim == 3
    if on_grid and given.shape[2] == first.shape[2]:
        return RESIZED, np.asarray(jax.image.resize(given, first.shape, "bicubic"))
    return NEW, first


def _rows(conditions: Mapping[str, Any]) -> dict[str, list]:
    """What the rows of the tables of classes and of attributes stand for, see `conditions`."""
    found = {}
    if "label" in conditions:
        found["conditions/label/table/embedding"] = [*conditions["label"], "no class"]
    if "attributes" in conditions:
        both = [(name, has) for has in (True, False) for name in conditions["attributes"]]
        found["conditions/attributes/table"] = both
    return found


def _compare(old: ConfigDict, new: ConfigDict) -> None:
    """Say what the network will be asked for that it was not trained for."""
    lines = [line for line in config_lib.differences(old, new) if line.startswith("diffusion.")]
    if lines:
        logs.say(f"trained with another process: {'; '.join(lines)}")


def _say(what: str, names: list[str], every: Mapping[str, Any]) -> None:
    """A line with how many parameters these are, and which."""
    if names:
        count = sum(every[name].size for name in names)
        shown = ", ".join(shortened(names, every))
        logs.say(f"{what}: {count:,} parameters in {len(names)} arrays: {shown}")


def shortened(names: Collection[str], every: Collection[str]) -> list[str]:
    """Paths, all below one by that alone ("time"), those of blocks in a row as "block_2..5/mod".

    every: all paths that there are.
    """
    chosen, found, blocks = set(names), {}, {}
    for name in names:
        parts = name.split("/")
        tops = ("/".join(parts[: i + 1]) for i in range(len(parts)))
        top = next(
            t for t in tops if all(n in chosen for n in every if f"{n}/".startswith(f"{t}/"))
        )
        if block := re.fullmatch(r"block_(\d+)(.*)", top):
            blocks.setdefault(block[2], set()).add(int(block[1]))
        else:
            found[top] = None
    for rest, numbers in blocks.items():
        for i in sorted(numbers):
            if i - 1 not in numbers:
                last = next(j for j in range(i, max(numbers) + 1) if j + 1 not in numbers)
                found[f"block_{i}{f'..{last}' * (last > i)}{rest}"] = None
    return list(found)
