"""Parameters alone, as one safetensors file that also says what they are."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vitdiff_jax.interop.families import flatten, nested
from vitdiff_jax.interop.images import partial_of

KIND = "vitdiff_jax"


def save(path: pathlib.Path, params: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write nested dicts of arrays, and facts as JSON has them, whole or not at all."""
    tensors = {name: np.ascontiguousarray(a) for name, a in flatten(params).items()}
    partial = partial_of(path)
    save_file(tensors, partial, {KIND: json.dumps(about)})
    partial.replace(path)


def load(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(params, facts) as `save` wrote them; None where it did not write this file.

    Raises ValueError for damaged files.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "numpy") as file:
            about = (file.metadata() or {}).get(KIND)
            if about is None:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return nested(tensors), json.loads(about)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: damaged: {error}") from error
