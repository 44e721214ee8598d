"""Conversion rules between tensors of published weights and our parameters, for `families`.

A `Rule` converts one of the authors' tensors to one or more of ours; both directions are exact. The
functions below inspect the shapes of a state dict, and create the rules of common layers.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """A network as inferred from its tensors.

    config: nested dict of the differences to the default config.
    shape: (H, W, C) of the network's input, images or latents.
    conditions: as in `data.pipeline.Dataset`, {"label": ("0", "1", ...)}; {}: unconditional.
    prefix: the common prefix of the names of the tensors.
    """

    config: Mapping[str, Any]
    shape: tuple[int, int, int]
    conditions: Mapping[str, Any]
    prefix: str = ""


@dataclasses.dataclass(frozen=True)
class Rule:
    """An exact conversion between one of their tensors, of this shape, and our parameters."""

    theirs: str
    shape: tuple[int, ...]
    ours: tuple[str, ...]
    to_ours: Callable[[np.ndarray], Sequence[np.ndarray]]
    to_theirs: Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True)
class Constant:
    """A constant tensor: checked on import, written on export."""

    theirs: str
    value: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape


def preview(names: Iterable[str], shown: int = 3) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def sizes(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    """The shape of the tensor `name`. Raises ValueError where it is missing or of another rank."""
    if name not in shapes:
        raise ValueError(
            f"missing: {name}; is this another family's file? It has {preview(shapes)}"
        )
    if len(shapes[name]) != rank:
        raise ValueError(f"wrong shape: {name}: {shapes[name]}, not {rank} axes")
    if 0 in shapes[name]:
        raise ValueError(f"wrong shape: {name}: {shapes[name]} has no numbers")
    return tuple(shapes[name])


def count(shapes: Shapes, prefix: str) -> int:
    """The number of repeated modules, names `<prefix><i>.*` with i from 0 on without a gap."""
    pattern = re.compile(re.escape(prefix) + r"([0-9]+)\.")
    found = {match[1] for name in shapes if (match := pattern.match(name))}
    if not found:
        raise ValueError(f"missing: {prefix}0.*; is this another family's file?")
    for i in range(len(found)):
        if str(i) not in found:
            last = max(found, key=lambda digits: (len(digits), digits))
            raise ValueError(f"missing: {prefix}{i}.*, though there is {prefix}{last}.*")
    return len(found)


def heads_of(width: int, given: int | None, published: Mapping[int, int]) -> int:
    """The number of heads, which shapes do not determine: as given, else as published."""
    heads = published.get(width) if given is None else given
    if heads is None:
        raise ValueError(
            f"heads: not determined by the shapes for the unpublished width {width}; give it"
        )
    if heads < 1 or width % heads:
        raise ValueError(f"heads: {heads} does not divide the width {width}")
    return heads


def grid_of(patches: int, patch: int, size: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of the network's input, square unless given."""
    side = round(patches**0.5)
    height, width = size or (side * patch, side * patch)
    fits = min(height, width) > 0 and not (height % patch or width % patch)
    if not fits or (height // patch) * (width // patch) != patches:
        wrong = f"{height}x{width} does not have" if size else "no square has"
        raise ValueError(f"size: {wrong} {patches} patches of {patch}; give (height, width)")
    return height, width


def classes(number: int) -> dict[str, tuple[str, ...]]:
    """The conditions of a network with this number of classes, named by their indices."""
    return {"label": tuple(str(i) for i in range(number))}


def model_of(
    spec: NetworkSpec, name: str, prediction: str, schedules: Iterable[str]
) -> dict[str, Any]:
    """config.model. Raises ValueError unless the model and process are those of the family."""
    diffusion = spec.config.get("diffusion", {})
    schedule = diffusion.get("schedule", {}).get("name", "RectifiedFlow")
    for key, value, wanted in (
        ("model.name", spec.config["model"]["name"], (name,)),
        ("diffusion.prediction", diffusion.get("prediction", "x"), (prediction,)),
        ("diffusion.schedule.name", schedule, tuple(schedules)),
    ):
        if value not in wanted:
            raise ValueError(f"config.{key}: {value} is not this family's {' or '.join(wanted)}")
    return dict(spec.config["model"])


def mlp_ratio(hidden: int, width: int, share: float = 1.0) -> float:
    """The ratio for which int(width * ratio * share) is `hidden`."""
    for ratio in (4.0, hidden / width / share):
        if int(width * ratio * share) == hidden:
            return ratio
    return (hidden + 0.5) / width / share


def copied(theirs: str, ours: str, shape: tuple[int, ...]) -> list[Rule]:
    """A tensor that is the same on both sides."""
    return [Rule(theirs, shape, (ours,), lambda a: (a,), lambda a: a)]


def has_null_row(rows: int, given: bool | None, published: Mapping[int, bool]) -> bool:
    """Whether the last row of a class table is the null class: as given, else as published.

    The null class has a row where labels were dropped in training, which shapes do not show.
    """
    null = published.get(rows) if given is None else given
    if null is None:
        raise ValueError(
            f"null_row: is the last of the {rows} rows of the class table the null class? Give"
            f" null_row=True ({rows - 1} classes, trained with label dropout) or null_row=False"
            f" ({rows} classes, without guidance)"
        )
    if rows - null < 1:
        raise ValueError(f"null_row: {rows} rows with the null class leave no class; give False")
    return null


def null_row_of(spec: NetworkSpec) -> bool:
    """Whether the family's table of this network has a row for the null class."""
    return spec.config["diffusion"].get("label_dropout", 0.1) > 0


def label_table(
    conditions: Mapping[str, Any],
    width: int,
    null_row: bool = True,
    theirs: str = "y_embedder.embedding_table.weight",
) -> Rule:
    """A class table; ours always has a last row for the null class, zero where theirs has none."""
    ours, classes = ("conditions/label/table/embedding",), len(conditions["label"])
    if null_row:
        return copied(theirs, ours[0], (classes + 1, width))[0]
    return Rule(
        theirs, (classes, width), ours,
        lambda a: (np.pad(a, ((0, 1), (0, 0))),), lambda a: a[:-1],
    )  # fmt: skip


def linear(theirs: str, ours: str, inputs: int, outputs: int, bias: bool = True) -> list[Rule]:
    """A linear layer: [out, in] in PyTorch, [in, out] in flax."""
    rule = Rule(
        f"{theirs}.weight", (outputs, inputs), (f"{ours}/kernel",), lambda a: (a.T,), np.transpose
    )
    return [rule, *copied(f"{theirs}.bias", f"{ours}/bias", (outputs,)) * bias]


def norm(theirs: str, ours: str, width: int) -> list[Rule]:
    """A normalisation layer with scale and bias."""
    parts = [("weight", "scale"), ("bias", "bias")]
    return [rule for a, b in parts for rule in copied(f"{theirs}.{a}", f"{ours}/{b}", (width,))]


def conv(
    theirs: str, ours: str, kernel: tuple[int, int], inputs: int, outputs: int, bias: bool = True
) -> list[Rule]:
    """A convolution: [out, in, h, w] in PyTorch, [h, w, in, out] in flax."""
    rule = Rule(
        f"{theirs}.weight", (outputs, inputs, *kernel), (f"{ours}/kernel",),
        lambda a: (a.transpose(2, 3, 1, 0),), lambda a: a.transpose(3, 2, 0, 1),
    )  # fmt: skip
    return [rule, *copied(f"{theirs}.bias", f"{ours}/bias", (outputs,)) * bias]


def patches(
    theirs: str, ours: str, patch: int, channels: int, width: int, bias: bool = True
) -> list[Rule]:
    """A strided convolution over patches as a linear layer on patches [p p C], channels fastest."""
    rule = Rule(
        f"{theirs}.weight", (width, channels, patch, patch), (f"{ours}/kernel",),
        lambda a: (a.transpose(2, 3, 1, 0).reshape(-1, width),),
        lambda a: a.reshape(patch, patch, channels, width).transpose(3, 2, 0, 1),
    )  # fmt: skip
    return [rule, *copied(f"{theirs}.bias", f"{ours}/bias", (width,)) * bias]


def attention(
    theirs: str, ours: str, width: int, heads: int, *, bias: bool = True, rotary: bool = False
) -> list[Rule]:
    """The layers `qkv` and `proj` as the separate layers of `models.attention.Attention`.

    The rows of qkv are ordered by (q, k or v; head; position in the head). bias: of qkv.
    rotary: their rotary pairs are adjacent (2i, 2i + 1), ours (i, i + K/2). Attention is invariant
    under a common permutation of queries and keys within each head; values are not permuted.
    """
    size = width // heads
    order = rotary_order(size) if rotary else np.arange(size)
    inverse = np.argsort(order)

    def permuted(a, order):  # the rows [H K, ...], within each head
        return a.reshape(heads, size, -1)[:, order].reshape(a.shape)

    def split(a):  # [3D, ...] -> q, k, v, [H K, ...] each
        q, k, v = np.split(a, 3)
        return permuted(q, order), permuted(k, order), v

    def fuse(q, k, v):
        return np.concatenate([permuted(q, inverse), permuted(k, inverse), v])

    rules = [
        Rule(
            f"{theirs}.qkv.weight", (3 * width, width), tuple(f"{ours}/{n}_kernel" for n in "qkv"),
            split, fuse,
        ),
        Rule(
            f"{theirs}.proj.weight", (width, width), (f"{ours}/out_kernel",),
            lambda a: (a.T,), np.transpose,
        ),
        *copied(f"{theirs}.proj.bias", f"{ours}/out_bias", (width,)),
    ]  # fmt: skip
    if bias:
        rules.append(Rule(
            f"{theirs}.qkv.bias", (3 * width,), tuple(f"{ours}/{n}_bias" for n in "qkv"),
            split, fuse,
        ))  # fmt: skip
    return rules


def rotary_order(size: int) -> np.ndarray:
    """The permutation from adjacent rotary pairs to halves: 0, 2, 4, ..., 1, 3, 5, ..."""
    return np.arange(size).reshape(-1, 2).T.ravel()


def sincos_positions(rows: int, cols: int, width: int) -> np.ndarray:
    """MAE's fixed positions [1, rows*cols, width], computed in float64 as in MAE: see `layers`."""
    frequencies = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4.0))
    row, col = np.divmod(np.arange(rows * cols, dtype=np.float64), cols)
    parts = []
    for position in (col, row):
        angle = np.outer(position, frequencies)
        parts += [np.sin(angle), np.cos(angle)]
    return np.concatenate(parts, 1)[None].astype(np.float32)
