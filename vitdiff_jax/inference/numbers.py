"""Numbers that a caller gives, of Python, NumPy or JAX: as plain ones, or one line on why not."""

import math
import operator
from typing import Any

import numpy as np

from vitdiff_jax.experiment import rules
from vitdiff_jax.experiment.config import ConfigError


def integer(name: str, value: Any, known: rules.Range = rules.REAL) -> int:
    """An integer in a range; ConfigError that names it."""
    try:
        if np.ndim(value) or np.asarray(value).dtype == bool:
            raise TypeError
        found = operator.index(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: {value!r} is not an integer") from None
    if found not in known:
        raise ConfigError(f"{name}: {known.refusal(found)}")
    return found


def real(name: str, value: Any, known: rules.Range = rules.REAL) -> float:
    """A finite number in a range; ConfigError that names it."""
    try:
        if np.ndim(value) or np.asarray(value).dtype.kind in "bcSU":
            raise TypeError
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name}: {value!r} is not a number") from None
    if not math.isfinite(found):
        raise ConfigError(f"{name}: {found} is not finite")
    if found not in known:
        raise ConfigError(f"{name}: {known.refusal(found)}")
    return found


def seeds(name: str, first: Any, count: int) -> np.ndarray:
    """The seeds int64 [count] from `first` on; ConfigError for those that are not 32 bits."""
    first = integer(name, first, rules.SEED)
    rules.check_seeds(name, first, count)
    return first + np.arange(count, dtype=np.int64)
