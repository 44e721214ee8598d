"""PyTorch's files and safetensors as NumPy arrays. No code of a file is run.

`.pt` and `.pth` files are read by PyTorch's own weights-only loader, which needs PyTorch (the extra
`torch`); safetensors need nothing.
"""

import argparse
import pathlib
import re
from typing import Any

import numpy as np
from numpy._core.multiarray import _reconstruct  # what a pickled array calls
from safetensors import SafetensorError
from safetensors.numpy import load_file


def read(path: pathlib.Path) -> Any:
    """What a safetensors, .pt or .pth file holds: {name: array}, nested or not, or one array.

    Tensors of 16 bits that NumPy does not know (bfloat16) become float32. Raises ValueError for
    other files.
    """
    if path.suffix == ".safetensors":
        try:
            return {name: _known(array) for name, array in load_file(path).items()}
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file: {error}") from error
    try:
        import torch  # 5 s, and only for these files  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"{path}: reading it needs PyTorch, once: pip install 'vitdiff_jax[torch]'"
        ) from error
    allowed = [
        np.ndarray, np.dtype, *(type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8")),
        argparse.Namespace,  # the options that training checkpoints hold
        _reconstruct, (_reconstruct, "numpy.core.multiarray._reconstruct"),  # NumPy 2, NumPy 1
    ]  # fmt: skip
    try:
        with torch.serialization.safe_globals(allowed):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # pickle's, zipfile's and PyTorch's own
        found = re.search(r"WeightsUnpickler error:\s*([^\n]+)", str(error))
        reason = found[1] if found else f"{type(error).__name__} {error}".partition("\n")[0]
        raise ValueError(f"{path}: not a file of tensors that PyTorch reads: {reason}") from error

    def arrays(value):
        if isinstance(value, dict):
            return {name: arrays(part) for name, part in value.items()}
        if not isinstance(value, torch.Tensor):
            return value
        return (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()

    return arrays(found)


def _known(array: np.ndarray) -> np.ndarray:
    """Of a type that NumPy itself knows."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
