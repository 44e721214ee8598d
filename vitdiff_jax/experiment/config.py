"""Configs: plain data, completed with defaults, overridden on the command line, validated.

`defaults.py` documents every key. A dict with a "name" is a component: the name is that of a module
in one of the package's folders (or of a function or class in one of its modules), and the other
keys are its keyword arguments. A dotted name refers to code outside the package; it is accepted in
a config that the user runs, never in a config.json, since loading a model must not run code.
"""

import dataclasses
import difflib
import importlib
import inspect
import json
import os
import pathlib
import pkgutil
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_dict, config_flags

from vitdiff_jax.diffusion.average_velocity import AverageVelocity
from vitdiff_jax.diffusion.process import Process
from vitdiff_jax.experiment import config_file, rules
from vitdiff_jax.experiment.defaults import CHANGEABLE, LEARNING, defaults
from vitdiff_jax.experiment.rules import ConfigError
from vitdiff_jax.experiment.rules import leaves as _leaves
from vitdiff_jax.operators import parsing
from vitdiff_jax.runtime import paths

COMPONENTS = {  # config key -> (package or module, entry point of each module of a package)
    "data": ("vitdiff_jax.data", "dataset"),
    "model": ("vitdiff_jax.models", "Model"),
    "diffusion.schedule": ("vitdiff_jax.diffusion.schedules", None),
    "diffusion.times": ("vitdiff_jax.diffusion.times", None),
    "sample.sampler": ("vitdiff_jax.samplers", "sample"),
    "sample.grid": ("vitdiff_jax.diffusion.grids", None),
}
METRICS = ("vitdiff_jax.evaluation", "Metric")
METRIC_LISTS = ("evaluate.metrics", "restore.metrics", "train.frechet.spaces")
SPELLED_LISTS = ("restore.tasks", "restore.methods", "degradation.operators")


def options(entry: Callable) -> dict[str, Any]:
    """The config keys of a component: its keyword arguments and defaults; None becomes typed."""
    found = {}
    hints = typing.get_type_hints(entry if inspect.isfunction(entry) else entry.__init__)
    for name, parameter in inspect.signature(entry).parameters.items():
        if parameter.default is parameter.empty or name in ("parent", "name"):
            continue
        value = parameter.default
        if value is None:
            kinds = [kind for kind in typing.get_args(hints[name]) if kind is not type(None)]
            value = config_dict.placeholder(kinds[0])
        found[name] = value
    return found


def find(place: tuple[str, str | None], key: str, name: str) -> Callable:
    """The component called `name`; `key` is the config key for error messages."""
    home, entry = place
    if not isinstance(name, str):
        raise ConfigError(f"{key}: {name!r} is not a string")
    if "." in name:
        module, attribute = (name, entry) if entry else name.rsplit(".", 1)
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{key}: cannot use {name!r}: {error}") from error
    known = available(place)
    if name not in known:
        plain = {one.lower(): one for one in known}
        near = difflib.get_close_matches(name.lower(), plain, 1, 0.7)
        meant = f"; did you mean {plain[near[0]]}?" if near else ""
        raise ConfigError(f"{key}: unknown name {name!r}{meant}; available: {', '.join(known)}")
    module = importlib.import_module(f"{home}.{name}" if entry else home)
    return getattr(module, entry or name)


def available(place: tuple[str, str | None]) -> list[str]:
    """The names of the package's components of one kind."""
    home, entry = place
    package = importlib.import_module(home)
    if entry:
        names = [found.name for found in pkgutil.iter_modules(package.__path__)]
        return [n for n in names if hasattr(importlib.import_module(f"{home}.{n}"), entry)]
    own = {n: v for n, v in vars(package).items() if getattr(v, "__module__", "") == home}
    kind = dataclasses.is_dataclass if home.endswith("schedules") else inspect.isfunction
    return [name for name, value in own.items() if kind(value) and not name.startswith("_")]


def component(config: ConfigDict, key: str) -> tuple[Callable, dict[str, Any]]:
    """(entry point, options) of the component at `key`, such as "diffusion.schedule"."""
    spec = _get(config, key).to_dict()
    return find(COMPONENTS[key], f"config.{key}.name", spec.pop("name")), spec


def load(path: paths.PathLike, overrides: Sequence[str] = ()) -> ConfigDict:
    """Read a config file ("file.py" or "file.py:variant"), fill in defaults, apply overrides.

    path: if there is no such file, the one shipped with the package is used: "configs/digits.py".
    overrides: command-line arguments, "--config.train.steps=200" as one string or two.
    """
    return complete(config_file.run(path), overrides)


def complete(given: ConfigDict | dict[str, Any], overrides: Sequence[str] = ()) -> ConfigDict:
    """`defaults`, updated with the given values and then the overrides; types are checked."""
    values = _values(given)
    tree = defaults()
    tree["diffusion"].update(options(Process), average_velocity=options(AverageVelocity))
    for key, place in COMPONENTS.items():
        named = _override(overrides, f"{key}.name")
        given_name = values.get(f"{key}.name") or _get(tree, key)["name"]
        name = named or given_name
        known = options(find(place, f"config.{key}.name", name))
        if name != given_name:  # the options given belong to another component
            values = {k: v for k, v in values.items() if not k.startswith(f"{key}.")}
        values[f"{key}.name"] = name
        _get(tree, key).update(known, name=name)
    config = ConfigDict(tree)
    keys = [key for key, _ in _leaves(config)]
    optional = [key for key, value in _leaves(config) if value is None]
    for key, value in values.items():
        if any(known.startswith(f"{key}.") for known in keys):
            raise ConfigError(f"config.{key}: {value!r} is not a section")
        if key not in keys:
            raise ConfigError(f"config.{key}: no such key{_nearest(key, keys)}")
        _set(config, key, value, key in optional)
    config = _apply(config, overrides, optional)
    rules.check(config)
    return config


def _values(given: ConfigDict | dict[str, Any]) -> dict[str, Any]:
    """{dotted key: value} of a config that a person has made."""
    try:
        given = given.to_dict() if isinstance(given, ConfigDict) else given
        if not isinstance(given, dict):
            raise ConfigError(f"config: {given!r:.60} is not a dict or ConfigDict")
        return {key: _plain(value) for key, value in _leaves(given)}
    except RecursionError as error:
        raise ConfigError("config: a section or list contains itself") from error
    except config_dict.RequiredValueError as error:
        raise ConfigError(
            "config: a required_placeholder has no value; set it in get_config()"
        ) from error


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's, lists as tuples, paths as strings."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _apply(config: ConfigDict, overrides: Sequence[str], optional: Sequence[str]) -> ConfigDict:
    """Apply command-line overrides to a completed config; None unsets the `optional` keys."""
    keys = [f"config.{key}" for key, _ in _leaves(config)]
    for flag in (argument[2:].partition("=")[0] for argument in overrides if argument[:2] == "--"):
        if flag not in keys:
            raise ConfigError(f"{flag}: no such key{_nearest(flag, keys)}")
    unset, overrides = _nones(overrides)
    for key in unset:
        _set(config, key, None, key in optional)
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=overrides)
        rest = values(["", *overrides])[1:]
    except (flags.Error, TypeError, ValueError) as error:
        text = " ".join(str(error).split()).removeprefix("flag --")
        raise ConfigError(text) from error
    if rest:
        raise ConfigError(f"{rest[0]}: not understood; write overrides as --config.key=value")
    return config


def _nones(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The keys that "--config.key=None" unsets, in one argument or two, and the other arguments.

    The last of several arguments for a key wins, as among those that set it.
    """
    found: dict[str, list[tuple[range, bool]]] = {}
    for i, argument in enumerate(overrides):
        if argument.startswith("--config."):
            flag, equals, value = argument[2:].partition("=")
            value = value if equals else "".join(overrides[i + 1 : i + 2])
            where = range(i, i + (1 if equals else 2))
            found.setdefault(flag.removeprefix("config."), []).append((where, value == "None"))
    unset = [key for key, given in found.items() if given[-1][1]]
    gone = {
        i
        for key, given in found.items()
        for where, none in given
        if none or key in unset
        for i in where
    }
    return unset, [argument for i, argument in enumerate(overrides) if i not in gone]


def _set(config: ConfigDict, key: str, value: Any, optional: bool) -> None:
    parent, _, last = key.rpartition(".")
    home = _get(config, parent) if parent else config
    kind = home.get_type(last)
    wrong = (kind is bool) != isinstance(value, bool) if value is not None else not optional
    if issubclass(kind, ConfigDict) or wrong:
        raise ConfigError(f"config.{key}: {value!r} is not {_kind(kind)}")
    try:
        home[last] = value
    except TypeError as error:
        raise ConfigError(f"config.{key}: {value!r} is not {_kind(kind)}") from error


def _kind(kind: type) -> str:
    names = {bool: "True or False", int: "an integer", float: "a number", str: "a string"}
    return names.get(kind, "a list of values" if kind is tuple else "a section")


def _nearest(key: str, keys: list[str]) -> str:
    near = difflib.get_close_matches(key, keys, 1, 0.5)
    return (
        f"; did you mean {'' if near[0].startswith('config') else 'config.'}{near[0]}?"
        if near
        else ""
    )


def _override(overrides: Sequence[str], key: str) -> str | None:
    """The value of --config.<key> among command-line arguments; the last one wins."""
    found = None
    for i, argument in enumerate(overrides):
        flag, equals, value = argument.lstrip("-").partition("=")
        if flag == f"config.{key}":
            found = value if equals else "".join(overrides[i + 1 : i + 2])
    return found


def _get(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree


def save(config: ConfigDict, path: epath.Path) -> None:
    """Write a config as JSON, atomically."""
    paths.write(path, (json.dumps(config.to_dict(), indent=2) + "\n").encode())


def read(
    path: pathlib.Path | epath.Path,
    overrides: Sequence[str] = (),
    trusted: ConfigDict | None = None,
) -> ConfigDict:
    """Read a workdir's config.json; names of code outside the package are rejected.

    trusted: the config that the user runs, to compare with: external code that it names is accepted
    here too, and keys that a resumed run may change are ignored.
    """
    try:
        given = json.loads(path.read_text())
        if not isinstance(given, dict):
            raise ValueError("holds no object")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: not found; is this the workdir of a training run?") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a valid config: {error}") from error
    return stored(given, path, overrides, trusted)


def stored(
    given: dict[str, Any],
    origin: object,
    overrides: Sequence[str] = (),
    trusted: ConfigDict | None = None,
) -> ConfigDict:
    """The same for what lies in another file than a config.json; origin: for messages."""
    if trusted is not None:
        given = _without(given, CHANGEABLE)
    for key, name in _elsewhere(dict(_leaves(given)), trusted):
        raise ConfigError(
            f"{origin}: {key} names code outside the package ({name}), which loading a model must"
            " not run; pass the --config it was trained with"
        )
    return complete(given, overrides)


def _elsewhere(leaves: dict[str, Any], trusted: ConfigDict | None) -> Iterator[tuple[str, str]]:
    """(key, name) of external code, except what `trusted` names too."""
    names: dict[str, tuple[str, ...]] = {
        key: (str(leaves.get(f"{key}.name", "")),) for key in COMPONENTS
    }
    for key in (*METRIC_LISTS, *SPELLED_LISTS):
        names[key] = tuple(map(str, leaves.get(key, ())))
    for key, found in names.items():
        foreign = parsing.is_external if key in SPELLED_LISTS else re.compile(r"\W").search
        own = _get(trusted, key) if trusted else ()
        own = (own["name"],) if key in COMPONENTS and own else own
        if any(map(foreign, found)) and found != own:
            yield key, ", ".join(found)


def _without(tree: dict[str, Any], keys: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """The tree without these keys and sections."""
    return {
        key: _without(value, keys, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in tree.items()
        if f"{prefix}{key}" not in keys
    }


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Changes of `new` that a run resumed from `old` must not make: "key: old -> new" for each."""
    return [line for line in _changes(old, new) if not _below(line, CHANGEABLE)]


def changes_of_learning(old: dict[str, Any], new: ConfigDict) -> list[str]:
    """Changes that it may make, but that affect what it learns from then on; as `differences`.

    old: the config.json; keys that it does not have are no change.
    """
    known = dict(_leaves(old))
    lines = [line for line in _changes(old, new) if _below(line, LEARNING)]
    return [line for line in lines if line.partition(":")[0] in known]


def _changes(old: dict[str, Any] | ConfigDict, new: ConfigDict) -> list[str]:
    before, after = dict(_leaves(old)), dict(_leaves(new))
    keys = sorted(before.keys() | after.keys())
    changed = [key for key in keys if before.get(key) != after.get(key)]
    return [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in changed]


def _below(line: str, keys: Sequence[str]) -> bool:
    """Whether a line "key: old -> new" is about one of these keys and sections."""
    key = line.partition(":")[0]
    return any(key == one or key.startswith(f"{one}.") for one in keys)
