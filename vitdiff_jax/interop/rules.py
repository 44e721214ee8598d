"""How tensors of published weights become our parameters, and back: what `families` are made of.

A `Rule` is one of their tensors and those of ours that it holds; both ways are exact. The functions
below read the shapes of a state dict, and write the rules of the layers that all families have.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Found:
    """A network, as its tensors show it.

    config: nested dict of what differs from `config.defaults`.
    shape: (H, W, C) of what the network sees, images or latents.
    conditions: as `data.pipeline.Dataset` has them, {"label": ("0", "1", ...)}; {} unconditional.
    prefix: what stood before the names of all tensors.
    """

    config: Mapping[str, Any]
    shape: tuple[int, int, int]
    conditions: Mapping[str, Any]
    prefix: str = ""


@dataclasses.dataclass(frozen=True)
class Rule:
    """One of their tensors, of this shape, is these of our parameters; both ways are exact."""

    theirs: str
    shape: tuple[int, ...]
    ours: tuple[str, ...]
    to_ours: Callable[[np.ndarray], Sequence[np.ndarray]]
    to_theirs: Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True)
class Constant:
    """A tensor that is always the same: checked when it comes in, written when it goes out."""

    theirs: str
    value: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape


def some(names: Iterable[str]) -> str:
    """The first three names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def sizes(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    """The shape of the tensor `name`, which must be there and have so many axes."""
    if name not in shapes:
        raise ValueError(f"missing: {name}; is this another family's file? It has {some(shapes)}")
    if len(shapes[name]) != rank:
        raise ValueError(f"of another shape: {name}: {shapes[name]}, not {rank} axes")
    return tuple(shapes[name])


def count(shapes: Shapes, prefix: str) -> int:
    """How many numbered parts there are: 1 + the largest i of names `<prefix><i>.*`"""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    found = [int(match[1]) for name in shapes if (match := pattern.match(name))]
    if not found:
        raise ValueError(f"missing: {prefix}0.*; is this another family's file?")
    return 1 + max(found)


def heads_of(width: int, given: int | None, published: Mapping[int, int]) -> int:
    """The number of heads, which no shape tells: as given, else that of the published width."""
    heads = published.get(width) if given is None else given
    if heads is None:
        raise ValueError(f"heads: not told by the shapes at the unpublished width {width}; give it")
    if heads < 1 or width % heads:
        raise ValueError(f"heads: {heads} does not divide the width {width}")
    return heads


def grid_of(patches: int, patch: int, size: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of what the network sees, square unless given."""
    side = round(patches**0.5)
    height, width = size or (side * patch, side * patch)
    if (height // patch) * (width // patch) != patches or height % patch or width % patch:
        told = f"{height}x{width} has not" if size else "no square has"
        raise ValueError(f"size: {told} {patches} patches of {patch}; give (height, width)")
    return height, width


def classes(number: int) -> dict[str, tuple[str, ...]]:
    """The conditions of a network that knows so many classes, by their numbers."""
    return {"label": tuple(str(i) for i in range(number))}


def model_of(found: Found, name: str, prediction: str, schedules: Iterable[str]) -> dict[str, Any]:
    """config.model, if that and the process are what a family's weights stand for."""
    diffusion = found.config.get("diffusion", {})
    schedule = diffusion.get("schedule", {}).get("name", "RectifiedFlow")
    for key, value, wanted in (
        ("model.name", found.config["model"]["name"], (name,)),
        ("diffusion.prediction", diffusion.get("prediction", "x"), (prediction,)),
        ("diffusion.schedule.name", schedule, tuple(schedules)),
    ):
        if value not in wanted:
            raise ValueError(f"config.{key}: {value} is not this family's {' or '.join(wanted)}")
    return dict(found.config["model"])


def mlp_ratio(hidden: int, width: int, share: float = 1.0) -> float:
    """The ratio for which int(width * ratio * share) is `hidden`."""
    for ratio in (4.0, hidden / width / share):
        if int(width * ratio * share) == hidden:
            return ratio
    return (hidden + 0.5) / width / share


def copied(theirs: str, ours: str, shape: tuple[int, ...]) -> list[Rule]:
    """The same on both sides."""
    return [Rule(theirs, shape, (ours,), lambda a: (a,), lambda a: a)]


def label_table(conditions: Mapping[str, Any], width: int) -> list[Rule]:
    """DiT's table of classes, to which "no class" is the last row, as to us."""
    rows = len(conditions["label"]) + 1
    ours = "conditions/label/table/embedding"
    return copied("y_embedder.embedding_table.weight", ours, (rows, width))


def linear(theirs: str, ours: str, inputs: int, outputs: int, bias: bool = True) -> list[Rule]:
    """A linear layer: PyTorch keeps [out, in], flax [in, out]."""
    rule = Rule(
        f"{theirs}.weight", (outputs, inputs), (f"{ours}/kernel",), lambda a: (a.T,), np.transpose
    )
    return [rule, *copied(f"{theirs}.bias", f"{ours}/bias", (outputs,)) * bias]


def norm(theirs: str, ours: str, width: int) -> list[Rule]:
    """A normalisation with a scale and a shift."""
    parts = [("weight", "scale"), ("bias", "bias")]
    return [rule for a, b in parts for rule in copied(f"{theirs}.{a}", f"{ours}/{b}", (width,))]


def conv(
    theirs: str, ours: str, kernel: tuple[int, int], inputs: int, outputs: int, bias: bool = True
) -> list[Rule]:
    """A convolution: PyTorch keeps [out, in, h, w], flax [h, w, in, out]."""
    rule = Rule(
        f"{theirs}.weight", (outputs, inputs, *kernel), (f"{ours}/kernel",),
        lambda a: (a.transpose(2, 3, 1, 0),), lambda a: a.transpose(3, 2, 0, 1),
    )  # fmt: skip
    return [rule, *copied(f"{theirs}.bias", f"{ours}/bias", (outputs,)) * bias]


def patches(
    theirs: str, ours: str, patch: int, channels: int, width: int, bias: bool = True
) -> list[Rule]:
    """A strided convolution over patches as our layer on patches [p p C], channels fastest."""
    rule = Rule(
        f"{theirs}.weight", (width, channels, patch, patch), (f"{ours}/kernel",),
        lambda a: (a.transpose(2, 3, 1, 0).reshape(-1, width),),
        lambda a: a.reshape(patch, patch, channels, width).transpose(3, 2, 0, 1),
    )  # fmt: skip
    return [rule, *copied(f"{theirs}.bias", f"{ours}/bias", (width,)) * bias]


def attention(
    theirs: str, ours: str, width: int, heads: int, *, bias: bool = True, rotary: bool = False
) -> list[Rule]:
    """The two layers `qkv` and `proj` as `models.attention.Attention` has them: apart.

    The rows of qkv are ordered (q or k or v, head, place in the head). bias: of qkv.
    rotary: their rotary pairs are neighbours (2i, 2i + 1), ours (i, i + K/2). Queries and keys meet
    in scalar products alone, in which a common order of the places does not matter; values stay.
    """
    size = width // heads
    turn = turned(size) if rotary else np.arange(size)
    back = np.argsort(turn)

    def placed(a, places):  # the rows [H K, ...], of each head in another order
        return a.reshape(heads, size, -1)[:, places].reshape(a.shape)

    def apart(a):  # [3D, ...] -> q, k, v, [H K, ...] each
        q, k, v = np.split(a, 3)
        return placed(q, turn), placed(k, turn), v

    def together(q, k, v):
        return np.concatenate([placed(q, back), placed(k, back), v])

    rules = [
        Rule(
            f"{theirs}.qkv.weight", (3 * width, width), tuple(f"{ours}/{n}_kernel" for n in "qkv"),
            apart, together,
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
            apart, together,
        ))  # fmt: skip
    return rules


def turned(size: int) -> np.ndarray:
    """The places of a head with neighbouring rotary pairs, as halves: 0, 2, 4, ..., 1, 3, 5, ..."""
    return np.arange(size).reshape(-1, 2).T.ravel()


def sincos_positions(rows: int, cols: int, width: int) -> np.ndarray:
    """MAE's fixed positions [1, rows*cols, width], computed in float64 as there: see `layers`."""
    frequencies = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4.0))
    row, col = np.divmod(np.arange(rows * cols, dtype=np.float64), cols)
    parts = []
    for place in (col, row):
        angle = np.outer(place, frequencies)
        parts += [np.sin(angle), np.cos(angle)]
    return np.concatenate(parts, 1)[None].astype(np.float32)
