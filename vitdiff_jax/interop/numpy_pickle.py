"""The only unpickler: NumPy arrays in dicts, lists and tuples, and nothing else.

Any other global in a pickle is refused before it is called, so that no code of a file can run.
"""

import pathlib
import pickle
from typing import Any

import numpy as np
from numpy._core.multiarray import _reconstruct  # called by pickled arrays

ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not a NumPy array")
        return ALLOWED[module, name]


def read(path: pathlib.Path) -> Any:
    """The arrays in a pickle file. Raises ValueError if it contains anything else."""
    try:
        with path.open("rb") as file:
            return _Arrays(file).load()
    except OSError:
        raise
    except Exception as error:  # damaged pickles raise all kinds of errors
        raise ValueError(f"{path}: not a pickle of NumPy arrays: {error}") from error
