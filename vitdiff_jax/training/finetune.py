"""Fine-tuning: initialising parameters from `config.train.init_from`, with a fresh optimiser.

Parameters of the same shape are copied, learned position embeddings are resized to the new grid of
patches, rows of class and attribute tables are matched by name, and whatever is new or of another
shape (patch embeddings of other channels, additional blocks) keeps its random initial value. A
report of this is printed before training.
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
from vitdiff_jax.experiment.build import Experiment, config_errors
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import model as model_lib
from vitdiff_jax.interop import families
from vitdiff_jax.runtime import logs, parallel, paths
from vitdiff_jax.training.step import TrainState

GRID = "positions"
"""Parameters of this name and three axes are position embeddings [rows, columns, width]."""
COPIED, PARTLY, RESIZED = "copied", "partly copied, by name", "resized"
NEW = "newly initialised"


def check(config: ConfigDict, workdir: epath.Path) -> None:
    """Raise ConfigError if the source of a new run is missing, before its workdir is created."""
    source = config.train.init_from
    if source is None or (workdir / "checkpoints").exists():
        return
    path = paths.resolve(source)
    with config_errors("config.train.init_from: "):
        if path.is_file():
            raise ConfigError(f"{path} is a file; convert it to a workdir with --mode=import")
        config_lib.read(path / "config.json")
        saved = path / "checkpoints"
        if not (saved.is_dir() and any(step.name.isdigit() for step in saved.iterdir())):
            raise ConfigError(f"{path}: contains no checkpoints")


def init_from(state: TrainState, experiment: Experiment, workdir: epath.Path) -> TrainState:
    """Initialise the parameters and EMAs of a new state from config.train.init_from.

    The source is the EMA that its config.sample selects. Its licence file is copied too.
    """
    source = paths.resolve(experiment.config.train.init_from)
    with config_errors("config.train.init_from: "):
        config = config_lib.read(source / "config.json")
        config.sample.guide_with = None  # only the parameters are needed
        model = model_lib.load(source, config)
    given = families.flatten(families.unstack_blocks(jax.tree.map(np.asarray, model.params)))
    initial = jax.jit(lambda a: a, out_shardings=parallel.replicated(model.mesh))(state.params)
    first = families.flatten(families.unstack_blocks(jax.tree.map(np.asarray, initial)))
    rows = _rows(experiment.conditions), _rows(model.experiment.conditions)
    found, lists = {}, {COPIED: [], PARTLY: [], RESIZED: [], NEW: []}
    for name, value in first.items():
        of_name = rows[0].get(name), rows[1].get(name)
        kind, found[name] = _transferred(name, value, given.get(name), *of_name)
        lists[kind].append(name)
    logs.say(f"initialising from {source}, step {model.step}")
    for kind, names in lists.items():
        _say(kind, names, first)
    _say("not used", [name for name in given if name not in first], given)
    _compare(model.experiment.config, experiment.config)
    if (source / model_lib.LICENCE).is_file() and jax.process_index() == 0:
        (source / model_lib.LICENCE).copy(workdir / model_lib.LICENCE, overwrite=True)
    params = families.stack_blocks(families.unflatten(found), state.params)
    params = jax.tree.map(lambda a, old: jax.device_put(a, old.sharding), params, state.params)
    copies = {name: jax.tree.map(jnp.copy, params) for name in state.ema}
    return state.replace(params=params, ema=copies)


def _transferred(
    name: str, first: np.ndarray, given: np.ndarray | None, rows: Any, given_rows: Any
) -> tuple[str, np.ndarray]:
    """How a parameter is initialised, and its value; rows: names of the rows of a table."""
    if given is None:
        return NEW, first
    if rows != given_rows and given.shape[1:] == first.shape[1:]:
        here = [(i, given_rows.index(row)) for i, row in enumerate(rows) if row in given_rows]
        found = first.copy()
        for i, old in here:
            found[i] = given[old]
        return PARTLY if here else NEW, found
    if given.shape == first.shape:
        return COPIED, given
    on_grid = name.rpartition("/")[2] == GRID and given.ndim == 3
    if on_grid and given.shape[2] == first.shape[2]:
        return RESIZED, np.asarray(jax.image.resize(given, first.shape, "bicubic"))
    return NEW, first


def _rows(conditions: Mapping[str, Any]) -> dict[str, list]:
    """Names of the rows of class and attribute tables, by parameter; see `models.conditions`."""
    found = {}
    if "label" in conditions:
        found["conditions/label/table/embedding"] = [*conditions["label"], "no class"]
    if "attributes" in conditions:
        both = [(name, has) for has in (True, False) for name in conditions["attributes"]]
        found["conditions/attributes/table"] = both
    return found


def _compare(old: ConfigDict, new: ConfigDict) -> None:
    """Report differences of the diffusion process from the one the source was trained with."""
    lines = [line for line in config_lib.differences(old, new) if line.startswith("diffusion.")]
    if lines:
        logs.say(f"the source was trained with another diffusion process: {'; '.join(lines)}")


def _say(what: str, names: list[str], every: Mapping[str, Any]) -> None:
    """Print how many parameters these are, and which."""
    if names:
        count = sum(every[name].size for name in names)
        shown = ", ".join(shortened(names, every))
        logs.say(f"{what}: {count:,} parameters in {len(names)} arrays: {shown}")


def shortened(names: Collection[str], every: Collection[str]) -> list[str]:
    """Abbreviated paths: a complete subtree by its root ("time"), consecutive blocks as a range.

    Such a range is "block_2..5/mod". every: all paths of the model.
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
