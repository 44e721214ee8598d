"""Finds the tensors of a network in whatever a checkpoint wraps around them.

Trainers nest state dicts ({"state_dict": ...}, {"ema": ..., "opt": ...}), and wrappers add to the
names of tensors (`module.`, `net.`, `_orig_mod.`). The place of one tensor that every network of a
family has tells both: what its name has in front is the prefix of the network.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from vitdiff_jax.interop.rules import preview
from vitdiff_jax.interop.torch_pickle import Unread

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts that data parallelism, torch.compile, FSDP and rematerialisation put into names."""
IN_BETWEEN = re.compile(rf"(?<=\.)(?:(?:{'|'.join(WRAPPERS)})\.)+")
SCALES = (".scale_weight", ".weight_scale")  # of ComfyUI's, of other quantised files
BESIDE = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")
"""Notes of quantised files: scales of activations, which are not quantised here; markers."""
DEPTH, REPEATS = 4, 8
"""Of dictionaries in dictionaries, and of one that has several names: a few bytes of a pickle can
name one very often."""


@dataclasses.dataclass(frozen=True)
class StateDict:
    """A network's tensors by its authors' names.

    entry: where in the file, "ema" or "state_dict/model_ema"; "": the file itself.
    prefix: of the names. tensors: without the prefix, and without wrappers in between.
    scales: of tensors that are quantised. left: names beside the prefix.
    """

    entry: str
    prefix: str
    tensors: Mapping[str, Any]
    scales: Mapping[str, Any]
    left: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.entry}/{self.prefix}*".lstrip("/") if self.prefix else self.entry


def find(contents: Any, anchor: str, order: Iterable[str]) -> list[StateDict]:
    """The networks in a file, the one to take first.

    anchor: the name of a tensor that every network of the family has. order: the entries to prefer;
    then come those named after an EMA, then the file's order. Without the anchor: all tensors of
    the file, or of its only entry with some. Raises ValueError if the file has no named tensors.
    """
    entries = list(_entries(contents, "", DEPTH, collections.Counter()))
    if not entries:
        raise ValueError(f"tensors expected, but the file has {_described(contents)}")
    wrapped = r"\.(?:(?:" + "|".join(WRAPPERS) + r")\.)*"
    pattern = re.compile(rf"(|.*\.){wrapped.join(map(re.escape, anchor.split('.')))}", re.DOTALL)
    found = []
    for entry, tensors in entries:
        prefixes = [match[1] for name in tensors if (match := pattern.fullmatch(name))]
        found += [_state_dict(entry, prefix, tensors, prefixes) for prefix in prefixes]
    if not found:
        entry, tensors = entries[0]
        return [_state_dict(entry, "", tensors, [""])]
    order = list(order)

    def rank(state: StateDict) -> tuple[int, bool]:
        place = order.index(state.entry) if state.entry in order else len(order)
        return place, not re.search(r"(?i)(?<![a-z])(ema|averag|swa)", state.name)

    return sorted(found, key=rank)


def _entries(
    contents: Any, path: str, depth: int, seen: collections.Counter[int]
) -> Iterable[tuple[str, dict]]:
    """(path, its tensors) of every dictionary with some, from the outside in."""
    if not isinstance(contents, Mapping) or not depth or seen[id(contents)] == REPEATS:
        return
    seen[id(contents)] += 1
    named = {name: value for name, value in contents.items() if isinstance(name, str)}
    if tensors := {name: value for name, value in named.items() if hasattr(value, "shape")}:
        yield path, tensors
    for name, value in named.items():
        yield from _entries(value, f"{path}/{name}".lstrip("/"), depth - 1, seen)


def _state_dict(entry: str, prefix: str, tensors: Mapping, prefixes: list[str]) -> StateDict:
    """The tensors under a prefix, without those of networks further inside."""
    inner = tuple(p for p in prefixes if p != prefix and p.startswith(prefix))
    mine, left = {}, []
    for name, tensor in tensors.items():
        if not name.startswith(prefix) or (inner and name.startswith(inner)):
            left.append(name)
            continue
        clean = IN_BETWEEN.sub("", name.removeprefix(prefix))
        if clean in mine:
            raise ValueError(f"{name}: there twice, with wrappers and without")
        mine[clean] = tensor
    scales = {}
    for name in list(mine):
        if name.endswith(BESIDE):
            left.append(name)
            del mine[name]
        for ending in SCALES:
            weight = name.removesuffix(ending) + ".weight"
            if name.endswith(ending) and weight in mine:
                if weight in scales:
                    raise ValueError(f"{weight}: has both {' and '.join(SCALES)}")
                scales[weight] = mine.pop(name)
    return StateDict(entry, prefix, mine, scales, tuple(left))


def left_unread(contents: Mapping[str, Any], taken: Iterable[StateDict]) -> list[str]:
    """What of a file is not used: other entries with their types, and tensors beside a prefix."""
    taken = list(taken)
    entries = {state.entry.partition("/")[0] for state in taken}
    found = []
    if "" in entries:
        found += dict.fromkeys(_part(name) for state in taken for name in state.left)
    for name, value in contents.items():
        if name in entries or (hasattr(value, "shape") and "" in entries):
            continue
        what = f" ({value.name})" if isinstance(value, Unread) else ""
        found.append(f"{name}{what}")
    if "" not in entries:
        for state in taken:
            parts = dict.fromkeys(_part(name) for name in state.left)
            found += [f"{state.entry}/{part}" for part in parts]
    return found


def _part(name: str) -> str:
    """The part of a network that a tensor is of; notes of quantised files by their endings."""
    ending = next((ending for ending in BESIDE if name.endswith(ending)), None)
    return f"*{ending}" if ending and name != ending else name.partition(".")[0]


def _described(contents: Any) -> str:
    """What a file has in place of named tensors."""
    if isinstance(contents, Unread):
        return f"an object of {contents.name}; save its state_dict()"
    if isinstance(contents, Mapping):
        return (
            preview(
                f"{name} ({value.name})" if isinstance(value, Unread) else str(name)
                for name, value in contents.items()
            )
            or "nothing"
        )
    return "one tensor without a name" if hasattr(contents, "shape") else "no names"
