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
from vitdiff_jax.inference import loading, pretrained
from vitdiff_jax.interop import families
from vitdiff_jax.runtime import logs, parallel, paths
from vitdiff_jax.training.step import TrainState

GRID = "positions"
"""Parameters of this name and three axes are position embeddings [rows, columns, width]."""
HEADS = ("heads", "head_width")
"""Options of networks that say how the arrays of attention are cut into heads."""
SAME = ("name", "size", "dtype", "scan", "remat", "dropout")
"""Options of networks that change nothing in what the parameters mean."""
COPIED, PARTLY, RESIZED = "copied", "partly copied, by name", "resized"
NEW = "newly initialised"


def check(config: ConfigDict, workdir: epath.Path) -> None:
    """Raise ConfigError if a new run cannot begin with its source, before its workdir is created.

    Nor from one with other attention heads: the same arrays would mean something else.
    """
    source = config.train.init_from
    if source is None or _has_checkpoints(workdir):
        return
    path = paths.resolve(source)
    with config_errors("config.train.init_from: "):
        if path.is_file():
            raise ConfigError(f"{path} is a file; convert it to a workdir with --mode=import")
        old = loading.config_of(source)
        if not pretrained.find(source) and not _has_checkpoints(path):
            raise ConfigError(f"{path}: contains no checkpoints")
        theirs, ours = (_meanings(one) for one in (old, config))
        for key in HEADS:
            both = key in theirs and key in ours and theirs.get("width") == ours.get("width")
            if both and theirs[key] != ours[key]:
                raise ConfigError(
                    f"{path} was trained with {theirs[key]} {key}, not {ours[key]}, and its"
                    f" attention weights are cut into those; set config.model.{key}={theirs[key]}"
                )


def _has_checkpoints(workdir: epath.Path) -> bool:
    saved = workdir / "checkpoints"
    return saved.is_dir() and any(step.name.isdigit() for step in saved.iterdir())


def init_from(state: TrainState, experiment: Experiment) -> TrainState:
    """Initialise the parameters and EMAs of a new state from config.train.init_from.

    The source is the EMA that its config.sample selects.
    """
    source = experiment.config.train.init_from
    with config_errors("config.train.init_from: "):
        config = loading.config_of(source)
        config.sample.guide_with = None  # only the parameters are needed
        model = loading.load(source, config)
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
    params = families.stack_blocks(families.unflatten(found), state.params)
    params = jax.tree.map(lambda a, old: jax.device_put(a, old.sharding), params, state.params)
    copies = {name: jax.tree.map(jnp.copy, params) for name in state.ema}
    return state.replace(params=params, ema=copies)


def copy_licence(config: ConfigDict, workdir: epath.Path) -> None:
    """Copy the licence of the weights that a new run begins with, if there is one."""
    source = config.train.init_from
    if source is not None and (licence := loading.licence_of(source)):
        paths.write(workdir / loading.LICENCE, licence.encode())


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


def _meanings(config: ConfigDict) -> dict[str, Any]:
    """{option: value} of what a network computes with its parameters; named sizes are resolved."""
    make, options = config_lib.component(config, "model")
    model = make({}, **options)
    if hasattr(model, "dim"):
        options |= {name: model.dim(name) for name in options if name in model.sizes[model.size]}
    if isinstance(options.get("attention"), str):  # an implementation, not the levels of a U-Net
        del options["attention"]
    return {key: value for key, value in options.items() if key not in SAME}


def _compare(old: ConfigDict, new: ConfigDict) -> None:
    """Say where the same parameters mean something else than where they were learned."""
    theirs, ours = _meanings(old), _meanings(new)
    changed = [
        key for key in sorted(theirs.keys() | ours.keys()) if theirs.get(key) != ours.get(key)
    ]
    lines = [f"model.{key}: {theirs.get(key)!r} -> {ours.get(key)!r}" for key in changed]
    lines += [
        line
        for line in config_lib.differences(old, new)
        if line.startswith(("diffusion.", "latent.factor", "degradation.", "model.name"))
    ]
    if lines:
        logs.say(f"warning: the source was trained with other settings: {'; '.join(lines)}")


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
