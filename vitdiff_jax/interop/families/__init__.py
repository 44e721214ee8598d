"""Published weights: our parameters from the authors' tensors, and the way back, exactly.

A module of this folder is a family of networks, as its authors call and shape their tensors:

    SOURCE, LICENCE   where the weights come from, and what may be done with them
    read(shapes)      -> Found: sizes, config and conditions from the tensors' shapes alone;
                      keyword options say what shapes cannot tell (heads=16)
    rules(found)      -> Rules: how each tensor becomes ours, and back
    AVERAGES          (optional) the entries of the authors' training checkpoints that hold
                      averages of the parameters, with their decay; the first is the one to use
    PREFIXES          (optional) what may stand before the names of all tensors

Our parameters are nested dicts, here spoken of by paths ("block_0/attention/q_kernel"). What the
authors' convention has otherwise (time that runs the other way, packed or turned queries, keys and
values) is taken into the weights. No code of a file is run and no other network is needed.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from vitdiff_jax.interop.rules import Constant, Found, Rule, Shapes, some

Tensors = Mapping[str, np.ndarray]

FIXED_TOLERANCE = 5e-3
"""Of fixed tensors: an average taken in float32 lets constants drift by 3e-4, bfloat16 by 2e-3."""


def from_torch(family: str, tensors: Mapping[str, Any], **known: Any) -> tuple[Found, dict]:
    """(what the network is, our parameters as nested dict of float32) from their tensors.

    family: a module of this folder. tensors: a state dict, or a checkpoint that holds several
    (the first average is taken). known: what shapes cannot tell, see the family's `read`.
    Raises ValueError in one line that names what is missing, unknown or of another shape.
    """
    module = find(family)
    tensors, prefix = _without_prefix(module, next(iter(sets(family, tensors).values())))
    options = list(inspect.signature(module.read).parameters)[1:]
    for name in known:
        if name not in options:
            raise ValueError(f"{name}: {family} has no such option, only {', '.join(options)}")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        found = dataclasses.replace(module.read(shapes, **known), prefix=prefix)
    except ValueError as error:
        raise ValueError(f"{family}: {error}") from error
    rules = module.rules(found)
    _compare(family, shapes, {rule.theirs: tuple(rule.shape) for rule in rules})
    flat = {}
    for rule in rules:
        tensor = np.asarray(tensors[rule.theirs], np.float32)
        if isinstance(rule, Rule):
            parts = map(np.ascontiguousarray, rule.to_ours(tensor))
            flat |= dict(zip(rule.ours, parts, strict=True))
        elif not np.allclose(tensor, rule.value, rtol=0, atol=FIXED_TOLERANCE):
            raise ValueError(f"{family}: {rule.theirs} is not what this family always has there")
    return found, nested(flat)


def to_torch(family: str, found: Found, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Their tensors, with their names, from our parameters (scanned blocks too).

    found: from `from_torch`, or made from a config of ours. Raises ValueError where the
    parameters do not fit the family.
    """
    flat = flatten(unrolled(params))
    rules = find(family).rules(found)
    used = {path for rule in rules if isinstance(rule, Rule) for path in rule.ours}
    _complain(f"{family} as it is published", used - flat.keys(), flat.keys() - used, [])
    tensors = {}
    for rule in rules:
        if isinstance(rule, Constant):
            tensor = rule.value
        else:
            try:
                tensor = rule.to_theirs(*(np.asarray(flat[path]) for path in rule.ours))
            except ValueError as error:
                raise ValueError(f"{family}: {rule.ours[0]}: {error}") from error
        if tensor.shape != tuple(rule.shape):
            wrong = [f"{rule.theirs}: {tensor.shape}, not {tuple(rule.shape)}"]
            _complain(family, (), (), wrong)
        tensors[found.prefix + rule.theirs] = np.ascontiguousarray(tensor, np.float32)
    return tensors


def sets(family: str, file: Mapping[str, Any]) -> dict[str, Tensors]:
    """The sets of tensors in a file, by entry, averages first; {"": file} where it is one itself.

    What a training checkpoint holds besides the network's tensors is left out.
    """
    if all(hasattr(value, "shape") for value in file.values()):
        return {"": file}
    known = [*averages(family), "ema", "model", "state_dict"]
    entries = {name: file[name] for name in known if isinstance(file.get(name), Mapping)}
    if not entries:
        raise ValueError(f"{family}: tensors expected, but the file has {some(file)}")
    return entries


def averages(family: str) -> dict[str, float]:
    """The entries of the authors' training checkpoints that are averages, and their decays."""
    return dict(getattr(find(family), "AVERAGES", {}))


def available() -> list[str]:
    """The names of the families."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def find(family: str) -> ModuleType:
    """The module of a family; ValueError names those that there are."""
    if family not in available():
        raise ValueError(f"family: {family!r} is none of {', '.join(available())}")
    return importlib.import_module(f"{__name__}.{family}")


def _without_prefix(module: ModuleType, tensors: Mapping[str, Any]) -> tuple[Tensors, str]:
    """Tensors without what wrappers put before every name, and that prefix."""
    found = ""
    while tensors:
        for prefix in ("module.", "_orig_mod.", *getattr(module, "PREFIXES", ())):
            if all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
                found += prefix
                break
        else:
            break
    return tensors, found


def _compare(family: str, found: Shapes, wanted: Shapes) -> None:
    wrong = [
        f"{name}: {found[name]}, not {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    missing = [name for name in wanted if name not in found]
    _complain(family, missing, [name for name in found if name not in wanted], wrong)


def _complain(what: str, missing: Iterable, unknown: Iterable, wrong: Iterable) -> None:
    """Raise the one line that names the first few of each kind, if there are any."""
    kinds = {"missing": missing, "unknown": unknown, "of another shape": wrong}
    parts = [f"{kind}: {some(names)}" for kind, names in kinds.items() if names]
    if parts:
        raise ValueError(f"{what}: {'; '.join(parts)}")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": leaf}} as {"a/b": leaf}."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value
    return flat


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        home = tree
        for parent in parents:
            home = home.setdefault(parent, {})
        home[last] = value
    return tree


def unrolled(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with the stacks of `scan`, `blocks_<first>_to_<last>`, as `block_<i>` each."""
    found = {}
    for name, value in params.items():
        if not (run := re.fullmatch(r"blocks_(\d+)_to_(\d+)", name)):
            found[name] = value
            continue
        for place, i in enumerate(range(int(run[1]), int(run[2]) + 1)):
            flat = {path: leaf[place] for path, leaf in flatten(value).items()}
            found[f"block_{i}"] = nested(flat)
    return found


def rolled(params: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The inverse of `unrolled`; names: those of the wanted parameters (blocks_0_to_3, ...)."""
    found = dict(params)
    for name in names:
        if run := re.fullmatch(r"blocks_(\d+)_to_(\d+)", name):
            blocks = [flatten(found.pop(f"block_{i}")) for i in range(int(run[1]), int(run[2]) + 1)]
            found[name] = nested({p: np.stack([b[p] for b in blocks]) for p in blocks[0]})
    return found
