"""Parameters alone, as one safetensors file that also says what they are."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file
from safetensors.numpy import save as as_bytes

from vitdiff_jax.interop.families import flatten, nested
from vitdiff_jax.runtime import paths

KIND = "vitdiff_jax"
FACTS = ("config", "shape", "conditions", "family", "ema", "step", "licence")
"""What a file says of its parameters. family: whose names and shapes they have, None: ours."""


def save(path: epath.Path, params: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write nested dicts of arrays, and `FACTS` as JSON has them, whole or not at all."""
    tensors = {name: np.ascontiguousarray(a) for name, a in flatten(params).items()}
    facts = {KIND: json.dumps({name: about[name] for name in FACTS})}
    paths.write(path, as_bytes(tensors, facts))


def about(path: pathlib.Path) -> dict[str, Any] | None:
    """The facts that `save` wrote; None where it did not write this file.

    Raises ValueError for damaged files.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "numpy") as file:
            text = (file.metadata() or {}).get(KIND)
        if text is None:
            return None
        found = json.loads(text)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    if not (isinstance(found, dict) and found.keys() == set(FACTS)):
        raise ValueError(f"{path}: damaged: it does not say what it holds")
    return found


def load(path: pathlib.Path) -> dict[str, Any]:
    """The parameters that `save` wrote. Raises ValueError for damaged files."""
    try:
        return nested(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged: {error}") from error
