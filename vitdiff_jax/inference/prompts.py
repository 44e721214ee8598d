"""What a user asks for (a class, a prompt, attributes) as the arrays that a model takes."""

import difflib
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitdiff_jax.data import embeddings, pipeline, text
from vitdiff_jax.experiment.config import ConfigError

Cond = dict[str, np.ndarray]
Label = int | str | Sequence[int | str] | np.ndarray
Texts = str | Sequence[str]


def ask(
    conditions: Mapping[str, Any],
    n: int,
    label: Label | None = None,
    prompt: Texts | None = None,
    attributes: Texts | None = None,
) -> Cond:
    """Conditions for n images, each one for all of them or a list with one for each.

    conditions: a data set's, see `data.pipeline.Dataset`. label: a number, a name, or -1 for none;
    None: the classes in turn. attributes: "Smiling,-Male": has the first, has not the second, the
    others left open. What is None is not told. Impossible wishes are a ConfigError.
    """
    found = {}
    for flag, value, kinds in (
        ("label", label, ["label"]),
        ("attributes", attributes, ["attributes"]),
        ("prompt", prompt, ["text", "embedding"]),
    ):
        if value is not None and not any(kind in conditions for kind in kinds):
            has = ", ".join(conditions) or "nothing"
            raise ConfigError(f"--{flag}: the model was trained with {has} as a condition")
    if "label" in conditions:
        names = conditions["label"]
        numbers = np.arange(n) % len(names)
        if label is not None:
            numbers = [_class(item, names) for item in _each("label", label, n)]
        found["label"] = np.asarray(numbers, np.int32)
    if "attributes" in conditions:
        wishes = _each("attributes", "" if attributes is None else attributes, n)
        found["attributes"] = np.stack(
            [_attributes(str(wish), conditions["attributes"]) for wish in wishes]
        )
    texts = [str(item) for item in _each("prompt", "" if prompt is None else prompt, n)]
    if "text" in conditions:
        found["text"] = np.stack([text.to_bytes(item, conditions["text"]) for item in texts])
    if "embedding" in conditions:
        found["embedding"] = embeddings.encode(texts, conditions["embedding"])
    return found


def of_examples(dataset: pipeline.Dataset, n: int, first: int = 0, *, prior: bool = False) -> Cond:
    """Conditions of images first, ..., first + n - 1 of a series for looking and measuring.

    Those of held-out examples in turn; of a data set with labels alone, the classes in turn, unless
    `prior`: then its labels too are those of held-out examples, in a random order (seed 0).
    """
    numbers = np.arange(first, first + n)
    if prior and dataset.conditions:
        numbers = np.random.default_rng(0).permutation(len(dataset.heldout))[
            numbers % len(dataset.heldout)
        ]
    elif list(dataset.conditions) == ["label"]:
        return {"label": (numbers % len(dataset.conditions["label"])).astype(np.int32)}
    if not dataset.conditions:
        return {}
    examples = [dataset.heldout.example(int(i)) for i in numbers % len(dataset.heldout)]
    return {name: np.stack([e[name] for e in examples]) for name in dataset.conditions}


def _each(flag: str, value: Any, n: int) -> list:
    """One value for all, or a list of n."""
    if isinstance(value, str) or np.ndim(value) == 0:
        return [value] * n
    if len(value) != n:
        raise ConfigError(f"{flag}: {len(value)} values for {n} images")
    return list(value)


def _class(label: int | str, names: Sequence[str]) -> int:
    """The number of a class, from its number or name."""
    if isinstance(label, str) and label in names:
        return names.index(label)
    try:
        number = operator.index(int(label) if isinstance(label, str) else label)
    except (ValueError, TypeError):
        raise ConfigError(f"label: there is no class {label!r}{_nearest(label, names)}") from None
    if not -1 <= number < len(names):
        raise ConfigError(f"label: {label} is not in -1 (none) to {len(names) - 1}")
    return number


def _attributes(wish: str, names: Sequence[str]) -> np.ndarray:
    """int8 [K] from "Smiling,-Male"."""
    found = np.full(len(names), -1, np.int8)
    for item in filter(None, (part.strip() for part in wish.split(","))):
        name = item.removeprefix("-").strip()
        if name not in names:
            raise ConfigError(
                f"attributes: there is no {name!r}{_nearest(name, names)}; there are"
                f" {', '.join(names)}"
            )
        found[list(names).index(name)] = 0 if item.startswith("-") else 1
    return found


def _nearest(name: Any, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), names, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""
