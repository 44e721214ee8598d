"""Parameters as a single safetensors file with metadata."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file
from safetensors.numpy import save as as_bytes

from vitdiff_jax.interop import torch_files
from vitdiff_jax.interop.families import flatten, unflatten
from vitdiff_jax.runtime import paths

KIND = "vitdiff_jax"
METADATA = ("config", "shape", "conditions", "family", "ema", "step", "licence")
"""The metadata of a file. family: whose names and shapes the parameters have; None: ours."""


def save(path: epath.Path, params: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write nested dicts of arrays, and `METADATA` as JSON, atomically."""
    tensors = {name: np.ascontiguousarray(a) for name, a in flatten(params).items()}
    metadata = {KIND: json.dumps({name: about[name] for name in METADATA})}
    paths.write(path, as_bytes(tensors, metadata))


def about(path: pathlib.Path) -> dict[str, Any] | None:
    """The metadata that `save` wrote; None for files that it did not write.

    Raises ValueError for damaged files.
    """
    kind = torch_files.kind(path)
    if kind != "safetensors" and (kind or path.suffix != ".safetensors"):
        return None
    try:
        with safe_open(path, "numpy") as file:
            text = (file.metadata() or {}).get(KIND)
        if text is None:
            return None
        found = json.loads(text)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    if not (isinstance(found, dict) and found.keys() == set(METADATA)):
        raise ValueError(f"{path}: damaged: its metadata is incomplete")
    for name, fits in _FITS.items():
        if not fits(found[name]):
            raise ValueError(f"{path}: damaged: its metadata has the {name} {found[name]!r:.60}")
    return found


def _has_sections(config: Any) -> bool:
    names = ("train", "sample")
    return isinstance(config, dict) and all(isinstance(config.get(name), dict) for name in names)


_FITS = {  # of the metadata, what their readers rely on
    "config": _has_sections,
    "shape": lambda a: isinstance(a, list) and [type(n) for n in a] == [int] * 3 and min(a) > 0,
    "conditions": lambda a: isinstance(a, dict),
    "family": lambda a: a is None or isinstance(a, str),
    "ema": lambda a: isinstance(a, str) and bool(a),
    "step": lambda a: isinstance(a, int),
    "licence": lambda a: isinstance(a, str),
}


def load(path: pathlib.Path) -> dict[str, Any]:
    """The parameters that `save` wrote, of half precision too, as float32.

    Raises ValueError for damaged files.
    """
    try:
        return unflatten({name: a.astype(np.float32) for name, a in load_file(path).items()})
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged: {error}") from error
