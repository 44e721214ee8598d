"""Starting from given parameters: `config.train.init_from`, with a fresh optimiser.

A parameter of the same shape is kept, positions learned on a grid of patches are resized to another
grid, and what is new or of another shape (the table of other classes, the patches of other
channels) keeps its first, random value. All that is said before training.
"""

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax import logs, trained
from vitdiff_jax.interop import families
from vitdiff_jax.train_step import TrainState

GRID = "positions"
"""Parameters of this name are learned positions [rows, columns, width]."""


def start(state: TrainState, source: str, workdir: pathlib.Path) -> TrainState:
    """A first state with the parameters of the model in the workdir `source`, averages too.

    They are those of the average that its config.sample names. Their licence comes along.
    """
    given = jax.tree.map(np.asarray, trained.load(source).params)
    given = families.flatten(families.rolled(families.unrolled(given), state.params))
    flat = families.flatten(state.params)
    found, lists = {}, {"kept": [], "resized": [], "newly initialised": []}
    for name, first in flat.items():
        kind, value = _fitted(name, first, given.get(name))
        lists[kind].append(name)
        found[name] = jax.device_put(value, first.sharding)
    for kind, names in lists.items():
        _say(kind, names, flat)
    _say(f"of {source}, left out", [name for name in given if name not in flat], given)
    params: Any = families.nested(found)
    if (licence := pathlib.Path(source) / "LICENCE.txt").is_file() and jax.process_index() == 0:
        shutil.copy(licence, workdir / licence.name)
    copies = {name: jax.tree.map(jnp.copy, params) for name in state.ema}
    return state.replace(params=params, ema=copies)


def _fitted(name: str, first: jax.Array, given: np.ndarray | None) -> tuple[str, Any]:
    """What becomes of a parameter, and its value."""
    if given is None:
        return "newly initialised", first
    if given.shape == first.shape:
        return "kept", given
    if name.rpartition("/")[2] == GRID and given.shape[2:] == first.shape[2:]:
        return "resized", np.asarray(jax.image.resize(given, first.shape, "bicubic"))
    return "newly initialised", first


def _say(what: str, names: list[str], sizes: Mapping[str, Any]) -> None:
    """A line with how many parameters that is, and of which arrays the first ten are."""
    count = sum(sizes[name].size for name in names)
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    logs.say(f"{what}: {count:,} parameters in {len(names)} arrays{': ' * bool(names)}{shown}")
