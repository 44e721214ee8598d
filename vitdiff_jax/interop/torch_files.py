"""Read PyTorch and safetensors files as NumPy arrays. No code of a file is run.

`.pt` and `.pth` files are read by PyTorch's weights-only loader, which needs PyTorch (the extra
`torch`); safetensors files do not.
"""

import argparse
import pathlib
import re
from typing import Any

import numpy as np
from numpy._core.multiarray import _reconstruct  # called by pickled arrays
from safetensors import SafetensorError
from safetensors.numpy import load_file


def read(path: pathlib.Path) -> Any:
    """The contents of a safetensors, .pt or .pth file: {name: array}, nested or not, or one array.

    bfloat16, which NumPy lacks, is converted to float32. Raises ValueError for other files.
    """
    if path.suffix == ".safetensors":
        try:
            return {name: _native(array) for name, array in load_file(path).items()}
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file: {error}") from error
    try:
        import torch  # takes 5 s to import  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"{path}: PyTorch is needed to read it, once: pip install 'vitdiff_jax[torch]'"
        ) from error
    allowed = [
        np.ndarray, np.dtype, *(type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8")),
        argparse.Namespace,  # the options in training checkpoints
        _reconstruct, (_reconstruct, "numpy.core.multiarray._reconstruct"),  # NumPy 2, NumPy 1
    ]  # fmt: skip
    try:
        with torch.serialization.safe_globals(allowed):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of pickle, zipfile and PyTorch
        found = re.search(r"WeightsUnpickler error:\s*([^\n]+)", str(error))
        reason = found[1] if found else f"{type(error).__name__} {error}".partition("\n")[0]
        raise ValueError(f"{path}: not a file of tensors readable by PyTorch: {reason}") from error

    def arrays(value):
        if isinstance(value, dict):
            return {name: arrays(part) for name, part in value.items()}
        if not isinstance(value, torch.Tensor):
            return value
        return (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()

    return arrays(found)


def _native(array: np.ndarray) -> np.ndarray:
    """The array in a native NumPy dtype."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
