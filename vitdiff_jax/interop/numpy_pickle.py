"""The one unpickler: it makes NumPy arrays in dicts, lists and tuples, and nothing else.

Whatever else a pickle names is refused before it is called, so that no code of a file can run.
"""

import pathlib
import pickle
from typing import Any

import numpy as np
from numpy._core.multiarray import _reconstruct  # what a pickled array calls

ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no NumPy array")
        return ALLOWED[module, name]


def read(path: pathlib.Path) -> Any:
    """The arrays in a pickle file. Raises ValueError if it holds anything else."""
    try:
        with path.open("rb") as file:
            return _Arrays(file).load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise ValueError(f"{path}: not a pickle of NumPy arrays: {error}") from error
