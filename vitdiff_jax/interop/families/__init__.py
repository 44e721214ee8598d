"""Published weights: exact conversion between the authors' tensors and our parameters.

A module of this folder is a family of networks, with the names and shapes of its authors' tensors:

    SOURCE, LICENCE   where the weights come from, and under which licence
    read(shapes)      -> NetworkSpec: sizes, config and conditions from the tensors' shapes;
                      keyword options give what shapes do not determine (heads=16)
    rules(spec)       -> Rules: how each tensor is converted, in both directions
    EMAS              (optional) the entries of the authors' training checkpoints with EMAs of the
                      parameters, and their decays; the first one is used
    PREFIXES          (optional) prefixes that the names of all tensors may have

Our parameters are nested dicts, named by paths here ("block_0/attention/q_kernel"). Differing
conventions (reversed time, packed queries, keys and values, other rotary pairs) are converted in
the weights. No code of a file is run, and no other network is needed.
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

from vitdiff_jax.interop.rules import Constant, NetworkSpec, Rule, Shapes, preview

Tensors = Mapping[str, np.ndarray]

FIXED_TOLERANCE = 5e-3
"""For constant tensors: an EMA in float32 lets them drift by 3e-4, bfloat16 by 2e-3."""


def from_torch(family: str, tensors: Mapping[str, Any], **known: Any) -> tuple[NetworkSpec, dict]:
    """(the network's spec, our parameters as a nested dict of float32) from the authors' tensors.

    family: a module of this folder. tensors: a state dict, or a checkpoint with several, of which
    the first EMA is used. known: what shapes do not determine, see the family's `read`.
    Raises ValueError that names missing or unknown tensors, or wrong shapes, in one line.
    """
    module = find(family)
    tensors, prefix = _without_prefix(module, next(iter(state_dicts(family, tensors).values())))
    options = list(inspect.signature(module.read).parameters)[1:]
    for name in known:
        if name not in options:
            raise ValueError(f"{name}: {family} has no such option, only {', '.join(options)}")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        spec = dataclasses.replace(module.read(shapes, **known), prefix=prefix)
    except ValueError as error:
        raise ValueError(f"{family}: {error}") from error
    rules = module.rules(spec)
    _compare(family, shapes, {rule.theirs: tuple(rule.shape) for rule in rules})
    flat = {}
    for rule in rules:
        tensor = np.asarray(tensors[rule.theirs], np.float32)
        if isinstance(rule, Rule):
            parts = map(np.ascontiguousarray, rule.to_ours(tensor))
            flat |= dict(zip(rule.ours, parts, strict=True))
        elif not np.allclose(tensor, rule.value, rtol=0, atol=FIXED_TOLERANCE):
            raise ValueError(f"{family}: {rule.theirs} differs from the constant of this family")
    return spec, unflatten(flat)


def to_torch(family: str, spec: NetworkSpec, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The authors' tensors from our parameters, which may have scanned blocks.

    spec: from `from_torch`, or made from a config. Raises ValueError where the parameters do not
    match the family.
    """
    flat = flatten(unstack_blocks(params))
    rules = find(family).rules(spec)
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
        tensors[spec.prefix + rule.theirs] = np.ascontiguousarray(tensor, np.float32)
    return tensors


def state_dicts(family: str, file: Mapping[str, Any]) -> dict[str, Tensors]:
    """The state dicts in a training checkpoint by entry, EMAs first; {"": file} for a state dict.

    Other entries of a training checkpoint are left out.
    """
    if all(hasattr(value, "shape") for value in file.values()):
        return {"": file}
    known = [*ema_decays(family), "ema", "model", "state_dict"]
    entries = {name: file[name] for name in known if isinstance(file.get(name), Mapping)}
    if not entries:
        raise ValueError(f"{family}: tensors expected, but the file has {preview(file)}")
    return entries


def ema_decays(family: str) -> dict[str, float]:
    """The entries of the authors' training checkpoints with EMAs, and their decays."""
    return dict(getattr(find(family), "EMAS", {}))


def available() -> list[str]:
    """The names of the families."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def find(family: str) -> ModuleType:
    """The module of a family. Raises ValueError for an unknown one."""
    if family not in available():
        raise ValueError(f"family: {family!r} is not one of {', '.join(available())}")
    return importlib.import_module(f"{__name__}.{family}")


def _without_prefix(module: ModuleType, tensors: Mapping[str, Any]) -> tuple[Tensors, str]:
    """Tensors without the common prefix added by wrappers, and that prefix."""
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
    """Raise a ValueError that names the first few of each kind, if there are any."""
    kinds = {"missing": missing, "unknown": unknown, "wrong shape": wrong}
    parts = [f"{kind}: {preview(names)}" for kind, names in kinds.items() if names]
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


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        home = tree
        for parent in parents:
            home = home.setdefault(parent, {})
        home[last] = value
    return tree


def unstack_blocks(params: Mapping[str, Any]) -> dict[str, Any]:
    """Unstack the parameters of scanned blocks, `blocks_<first>_to_<last>`, into `block_<i>`."""
    found = {}
    for name, value in params.items():
        if not (run := re.fullmatch(r"blocks_(\d+)_to_(\d+)", name)):
            found[name] = value
            continue
        for place, i in enumerate(range(int(run[1]), int(run[2]) + 1)):
            flat = {path: leaf[place] for path, leaf in flatten(value).items()}
            found[f"block_{i}"] = unflatten(flat)
    return found


def stack_blocks(params: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The inverse of `unstack_blocks`; names: of the stacked parameters (blocks_0_to_3, ...)."""
    found = dict(params)
    for name in names:
        if run := re.fullmatch(r"blocks_(\d+)_to_(\d+)", name):
            blocks = [flatten(found.pop(f"block_{i}")) for i in range(int(run[1]), int(run[2]) + 1)]
            found[name] = unflatten({p: np.stack([b[p] for b in blocks]) for p in blocks[0]})
    return found
