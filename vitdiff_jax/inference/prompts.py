"""Encodes user input (a class, a prompt, attributes) into the condition arrays of a model."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vitdiff_jax.data import embeddings, pipeline, text
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import numbers

Cond = dict[str, np.ndarray]
Label = int | str | Sequence[int | str] | np.ndarray
Texts = str | Sequence[str]
SHOWN = 12
"""Names of classes or attributes in an error message, at most."""


def encode(
    conditions: Mapping[str, Any],
    n: int,
    label: Label | None = None,
    prompt: Texts | None = None,
    attributes: Texts | None = None,
) -> Cond:
    """The condition arrays of n images; each argument is one value for all, or a list of n.

    conditions: of the dataset, see `data.pipeline.Dataset`. label: a number, a name, or -1 for the
    null class; None: the classes in turn. attributes: "Smiling,-Male" sets the first, unsets the
    second and leaves the others unspecified. Others that are None become null conditions. Invalid
    values raise ConfigError.
    """
    found = {}
    for flag, value, kinds in (
        ("label", label, ["label"]),
        ("attributes", attributes, ["attributes"]),
        ("prompt", prompt, ["text", "embedding"]),
    ):
        if value is not None and not any(kind in conditions for kind in kinds):
            raise ConfigError(f"--{flag}: {_conditioned_on(conditions)}")
    if "label" in conditions:
        names = conditions["label"]
        numbers = np.arange(n) % len(names)
        if label is not None:
            numbers = [_class_index(item, names) for item in _repeat("label", label, n)]
        found["label"] = np.asarray(numbers, np.int32)
    if "attributes" in conditions:
        given = _repeat("attributes", "" if attributes is None else attributes, n)
        found["attributes"] = np.stack(
            [_attributes(str(text), conditions["attributes"]) for text in given]
        )
    texts = [str(item) for item in _repeat("prompt", "" if prompt is None else prompt, n)]
    if "text" in conditions:
        found["text"] = np.stack([text.to_bytes(item, conditions["text"]) for item in texts])
    if "embedding" in conditions:
        found["embedding"] = embeddings.encode(texts, conditions["embedding"])
    return found


def of_examples(dataset: pipeline.Dataset, n: int, first: int = 0, *, prior: bool = False) -> Cond:
    """Conditions of samples first, ..., first + n - 1, for sample grids and evaluation.

    Those of the held-out examples in turn. With a dataset that has labels only: the classes in
    turn, or with `prior` the labels of held-out examples, in random order (seed 0).
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
    return of_heldout(dataset, numbers % len(dataset.heldout))


def of_heldout(dataset: pipeline.Dataset, which: Iterable[int]) -> Cond:
    """Conditions of these held-out examples, besides their hints."""
    examples = [dataset.heldout.example(int(i)) for i in which]
    return {name: np.stack([e[name] for e in examples]) for name in dataset.conditions}


def _conditioned_on(conditions: Mapping[str, Any]) -> str:
    """What a model can be conditioned on, for error messages."""
    if not conditions:
        return "the model is unconditional: it was trained without labels, attributes or text"
    return f"the model is conditioned on {', '.join(conditions)} only"


def _repeat(flag: str, value: Any, n: int) -> list:
    """A list of n values, from one value or a list of n."""
    if isinstance(value, str) or np.ndim(value) == 0:
        return [value] * n
    if len(value) != n:
        raise ConfigError(f"{flag}: {len(value)} values for {n} images")
    return list(value)


def _class_index(label: int | str, names: Sequence[str]) -> int:
    """The index of a class, from its index or name."""
    text = label.strip() if isinstance(label, str) else None
    for name in (label, text):
        if isinstance(name, str) and name in names:
            return list(names).index(name)
    try:
        if text is not None and not re.fullmatch("-?[0-9]+", text):  # int() reads "1_0" too
            raise ValueError
        number = int(text) if text is not None else numbers.integer("label", label)
    except ValueError:
        raise ConfigError(f"label: unknown class {label!r}{_known(label, names)}") from None
    if not -1 <= number < len(names):
        raise ConfigError(f"label: {label} is not in -1 (null class) to {len(names) - 1}")
    return number


def _attributes(text: str, names: Sequence[str]) -> np.ndarray:
    """Parse "Smiling,-Male" into int8 [K]: 1 set, 0 not set, -1 unspecified."""
    found = np.full(len(names), -1, np.int8)
    for item in filter(None, (part.strip() for part in text.split(","))):
        name = item.removeprefix("-").strip()
        if name not in names:
            raise ConfigError(f"attributes: unknown attribute {name!r}{_known(name, names)}")
        found[list(names).index(name)] = 0 if item.startswith("-") else 1
    return found


def _known(name: Any, names: Sequence[str]) -> str:
    """For an error message: what `name` may stand for, and the names, if many the nearest."""
    near = difflib.get_close_matches(str(name), names, SHOWN, 0.5)
    guess = f"; did you mean {near[0]}?" if near else ""
    if len(names) <= SHOWN:
        return f"{guess}; available: {', '.join(names)}"
    shown = list(dict.fromkeys([*near, *names]))[:SHOWN]
    return f"{guess}; available: {', '.join(shown)} and {len(names) - SHOWN:,} more"
