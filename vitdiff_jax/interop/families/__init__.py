"""Published weights: exact conversion between the authors' tensors and our parameters.

A module of this folder is a family of networks, with the names and shapes of its authors' tensors:

    SOURCE, LICENCE   where the weights come from, and under which licence
    read(shapes)      -> NetworkSpec: sizes, config and conditions from the tensors' shapes;
                      keyword options give what shapes do not determine (heads=16)
    rules(spec)       -> Rules: how each tensor is converted, in both directions
    ANCHOR            the name of a tensor that every network of the family has
    PREFIX            (optional) of the names in published files, for what was not imported from one
    EMAS              (optional) the entries of the authors' training checkpoints with EMAs of the
                      parameters, and their decays; the first one is used
    EXTRAS            (optional) beginnings of the names of tensors that do not change the output

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

import jax.numpy as jnp
import numpy as np

from vitdiff_jax.interop.rules import Constant, NetworkSpec, Rule, Shapes, preview
from vitdiff_jax.interop.state_dicts import StateDict
from vitdiff_jax.interop.state_dicts import find as find_state_dicts
from vitdiff_jax.interop.tensors import Tensor

DIFFUSERS = ("transformer_blocks.", "pos_embed.proj.")

FIXED_TOLERANCE = 5e-3
"""For constant tensors: an EMA in float32 lets them drift by 3e-4, bfloat16 by 2e-3."""


def from_torch(family: str, tensors: Any, **known: Any) -> tuple[NetworkSpec, dict]:
    """(the network's spec, our parameters as a nested dict of float32) from the authors' tensors.

    family: a module of this folder. tensors: a `StateDict`, a state dict by any names, or a
    checkpoint with several, of which the first EMA is used. known: what shapes do not determine,
    see the family's `read`.
    Raises ValueError that names missing, unknown or unusable tensors, or wrong shapes, in one line.
    """
    module = find(family)
    found = tensors if isinstance(tensors, StateDict) else state_dicts(family, tensors)[0]
    options = list(inspect.signature(module.read).parameters)[1:]
    for name in known:
        if name not in options:
            raise ValueError(f"{name}: {family} has no such option, only {', '.join(options)}")
    try:
        shapes = _shapes(found)
        spec = dataclasses.replace(module.read(shapes, **known), prefix=found.prefix)
    except ValueError as error:
        raise ValueError(f"{family}: {error}") from error
    rules = module.rules(spec)
    _compare(family, shapes, {rule.theirs: tuple(rule.shape) for rule in rules})
    flat = {}
    for rule in rules:
        try:
            tensor = _numbers(found.tensors[rule.theirs], found.scales.get(rule.theirs))
        except ValueError as error:
            raise ValueError(f"{family}: {rule.theirs}: {error}") from error
        if isinstance(rule, Rule):
            parts = map(np.ascontiguousarray, rule.to_ours(tensor))
            flat |= dict(zip(rule.ours, parts, strict=True))
        elif not np.allclose(
            tensor, rule.value, _rounding(found.tensors[rule.theirs]), FIXED_TOLERANCE
        ):
            raise ValueError(f"{family}: {rule.theirs} differs from the constant of this family")
    return spec, unflatten(flat)


def _shapes(found: StateDict) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors that have numbers; the first of another kind is an error."""
    for name, tensor in found.tensors.items():
        if isinstance(tensor, Tensor) and not tensor.readable:
            raise ValueError(f"{name}: {tensor.kind}; save it dense, in float32")
    if any(name.startswith(DIFFUSERS) for name in found.tensors):
        raise ValueError("the tensors have the names of diffusers' format, not their authors'")
    return {name: tuple(tensor.shape) for name, tensor in found.tensors.items()}


def _numbers(tensor: Any, scale: Any) -> np.ndarray:
    """A tensor as float32, finite; scale: of a quantised one, for all of it or for each output."""
    array = np.asarray(tensor)
    quantised = array.dtype == np.int8 and scale is not None
    if array.dtype.kind != "f" and not quantised:
        raise ValueError(
            f"{array.dtype} without a scale (.weight_scale or .scale_weight beside it) is not read"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        array = array.astype(np.float32)
        if scale is not None:
            array = array * _scale(np.asarray(scale), array)
    if not np.isfinite(array).all():
        number = int((~np.isfinite(array)).sum())
        raise ValueError(f"{number:,} of {array.size:,} numbers are not finite in float32")
    return array


def _rounding(tensor: Any) -> float:
    """Half of the relative step between numbers of a tensor's type."""
    kind = tensor.kind if isinstance(tensor, Tensor) else tensor.dtype.name
    return float(jnp.finfo(kind).eps) / 2 if "float" in kind else 0.0


def _scale(scale: np.ndarray, array: np.ndarray) -> np.ndarray:
    """A scale that broadcasts with the weight [out, ...] that it belongs to."""
    if scale.dtype.kind != "f":
        raise ValueError(f"its scale is of type {scale.dtype}")
    scale = scale.astype(np.float32)
    if scale.size == 1:
        return scale.reshape(())
    outputs, inputs = len(array), array.shape[1:]
    if scale.size == outputs and (len(scale) == outputs or outputs not in inputs):
        return scale.reshape(-1, *[1] * len(inputs))
    raise ValueError(f"scales of shape {scale.shape} are neither one nor one for each output")


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


def state_dicts(family: str, contents: Any) -> list[StateDict]:
    """The networks of this family in a file, the one to take first: EMAs, then the file's order.

    Tensors that do not change their output (`EXTRAS`) are moved to what is `left`.
    """
    module = find(family)
    order = [*ema_decays(family), "ema"]
    try:
        states = find_state_dicts(contents, module.ANCHOR, order)
    except ValueError as error:
        raise ValueError(f"{family}: {error}") from error
    extras = getattr(module, "EXTRAS", ())
    found = []
    for state in states:
        kept = {name: t for name, t in state.tensors.items() if not name.startswith(extras)}
        left = (name for name in state.tensors if name not in kept)
        found.append(dataclasses.replace(state, tensors=kept, left=(*state.left, *left)))
    return found


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
