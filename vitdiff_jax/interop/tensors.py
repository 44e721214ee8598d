"""A tensor that lies in a file: its shape and type are known, its numbers are read when needed.

So optimiser states and what else a training checkpoint holds cost no memory, and what NumPy cannot
hold (sparse tensors, float8 without its scale) is an error only where it is used.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

NARROW = ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
"""Types that NumPy lacks; they are converted to float32, which holds all of their values."""
NATIVE = (
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
    "uint64", "bool", "complex64", "complex128",
)  # fmt: skip


class Tensor:
    """shape: of the array. kind: the type in the file, or why there is no array of it.

    `numpy.asarray` reads it; raises ValueError for a kind that is not a type, or damaged files.
    """

    def __init__(self, shape: tuple[int, ...], kind: str, read: Callable[[], np.ndarray]):
        self.shape, self.kind, self._read = shape, kind, read

    @property
    def dtype(self) -> np.dtype:
        """Of the array."""
        return np.dtype("float32" if self.kind in NARROW else self.kind)

    @property
    def readable(self) -> bool:
        """Whether the kind is a type."""
        return self.kind in NARROW + NATIVE

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if not self.readable:
            raise ValueError(self.kind)
        found = self._read()
        return found.astype(dtype or self.dtype, copy=False)

    def __setstate__(self, state: Any) -> None:
        """Pickles cannot change it."""


def item_size(kind: str) -> int:
    """Bytes of a number."""
    return jnp.dtype(kind).itemsize


def unreadable(shape: tuple[int, ...], why: str) -> Tensor:
    """A tensor of which there is no array."""
    return Tensor(shape, why, lambda: np.zeros(0))


def strided(
    shape: tuple[int, ...], strides: tuple[int, ...], offset: int, kind: str, data: bytes
) -> np.ndarray:
    """The view of PyTorch's storage with these strides and offset, in numbers; checks its bounds.

    Raises ValueError for a view that is not inside, or that has more numbers than the storage.
    """
    numbers = np.frombuffer(data, jnp.dtype(kind))
    numbers = numbers.astype(np.float32) if kind in NARROW else numbers
    if min((*shape, *strides, offset), default=0) < 0 or len(shape) != len(strides):
        raise ValueError(f"damaged: shape {shape}, strides {strides}, offset {offset}")
    if 0 in shape:
        return np.zeros(shape, numbers.dtype)
    end = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
    if end > len(numbers):
        raise ValueError(f"damaged: shape {shape} in a storage of {len(numbers)} numbers")
    if math.prod(shape) > len(numbers):
        raise ValueError(f"expanded from {len(numbers)} numbers to {shape}; save it .contiguous()")
    steps = [step * numbers.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps, writeable=False)
