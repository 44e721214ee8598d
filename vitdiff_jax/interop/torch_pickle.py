"""Interprets the pickles of PyTorch's files without calling anything that they name.

A pickle is a program that names functions and calls them with arguments from the file. Here every
name stands for a function of this module (tensors, arrays, dictionaries) or for a class `Unread`,
whose instances accept and forget whatever a pickle does to them. No name is ever imported.
"""

import functools
import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, ClassVar

import numpy as np

from vitdiff_jax.interop.tensors import NATIVE, Tensor, unreadable


class Unread:
    """What stands for an object of the file that is not read. name: its class or function."""

    name = ""

    def __new__(cls, *_: Any, **__: Any) -> "Unread":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def __call__(self, *_: Any, **__: Any) -> "Unread":
        return self

    def ignore(*_: Any, **__: Any) -> None:  # also on the class itself, without self
        pass

    __setstate__ = __setitem__ = append = extend = add = ignore


class Named(dict):
    """A dictionary, of any class that is known to be one; attributes are not read."""

    def __setstate__(*_: Any) -> None:
        pass


class Items(tuple):
    """A tuple of the file, which is equal to itself only, and not shown.

    Tuples in each other may have so many items together, or be so deep, that to hash, compare or
    print one does not end, or ends the process. As a key each is one of its own.
    """

    __slots__ = ()
    __hash__, __eq__, __ne__ = object.__hash__, object.__eq__, object.__ne__

    def __repr__(self) -> str:
        return "(...)"


class Function:
    """One of ours under a name of the file; a pickle cannot change it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(*_: Any) -> None:
        pass


class _DType:
    """numpy.dtype(code, ...), whose byte order comes later."""

    def __init__(self, code: Any = None, *_: Any):
        self.code = code if isinstance(code, str) else ""

    def __setstate__(self, state: Any) -> None:
        if state[1] == ">":
            self.code = ""


class _Array(Tensor):
    """numpy's _reconstruct(...), whose shape, type and numbers come later."""

    def __init__(self, *_: Any):
        super().__init__((), "damaged: an array without contents", lambda: np.zeros(0))

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, columns_first, data = state
        code = dtype.code if isinstance(dtype, _DType) else ""
        plain = code[:1] in tuple("biufc") and code[1:].isdecimal()
        kind = np.dtype(code).name if plain else ""
        data = data.encode("latin1") if isinstance(data, str) else data
        if kind not in NATIVE or not isinstance(data, bytes):
            super().__init__((), "an array of objects", self._read)
            return
        super().__init__(tuple(map(int, shape)), kind, lambda: np.frombuffer(data, code).reshape(
            shape, order="F" if columns_first else "C"
        ))  # fmt: skip


def _encode(text: Any, codec: Any = "latin1") -> bytes:
    """Pickles of protocol 2 spell bytes so."""
    if not isinstance(text, str) or codec != "latin1":
        raise pickle.UnpicklingError("damaged: bytes in another codec")
    return text.encode("latin1")


def _ordered(items: Any = (), *_: Any) -> Named:
    """Python 3 gives no items, Python 2 a list of them, which serves once: copies add up."""
    if items and not isinstance(items, list):
        raise pickle.UnpicklingError("damaged: a dictionary of something else than pairs")
    found = Named(items)
    if isinstance(items, list):
        items.clear()
    return found


NAMES: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": lambda *_: Named(),
    "_codecs.encode": _encode,
    "numpy.dtype": _DType,
} | {f"numpy.{core}.multiarray._reconstruct": _Array for core in ("core", "_core")}


def _of_items(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """What interprets an opcode that makes a tuple, with `Items` in its place."""

    def loaded(self: Any) -> None:
        load(self)
        self.stack[-1] = Items(self.stack[-1])

    return loaded


def _frozen_set(self: Any) -> None:
    """Interprets FROZENSET: two that are built alike take as long to compare as tuples."""
    self.pop_mark()
    self.append(Unread())


TUPLES = (pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)
_Unpickler: Any = pickle._Unpickler  # pyright: ignore[reportAttributeAccessIssue]
"""In Python, where opcodes can be replaced; a checkpoint's pickle names tensors, and is short."""


class _Inert(_Unpickler):
    """names: more functions of ours. storage: what stands for a persistent id."""

    dispatch: ClassVar = (
        _Unpickler.dispatch
        | {ord(code): _of_items(_Unpickler.dispatch[ord(code)]) for code in TUPLES}
        | {ord(pickle.FROZENSET): _frozen_set}
    )

    def __init__(self, data: bytes, names: Mapping[str, Any], storage: Callable[[Any], Any]):
        super().__init__(io.BytesIO(data), encoding="latin1")
        once = {"_codecs.encode": functools.cache(_encode)}  # however often it is repeated
        self.names, self.persistent_load = NAMES | once | dict(names), storage

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in self.names:
            return Function(self.names[full])
        return type("Unread", (Unread,), {"name": full})


def read(
    file: BinaryIO,
    names: Mapping[str, Callable[..., Any]] | None = None,
    storage: Callable[[Any], Any] = Unread,
) -> Any:
    """The contents of the pickle at the file's position, which is behind it then.

    names: functions of ours that stand for names of the file. storage: of persistent ids.
    Raises ValueError for what is not a pickle.
    """
    start = file.tell()
    size = file.seek(0, io.SEEK_END) - start
    file.seek(start)
    try:
        for opcode, argument, _ in pickletools.genops(file):
            # Python would make room for what these announce before it looks whether it is there.
            large = "PUT" in opcode.name and int(argument) > size  # pyright: ignore
            if large or opcode.name.startswith("EXT"):
                raise ValueError(f"{opcode.name} {argument} in a file of {size} bytes")
        end = file.tell()
        file.seek(start)
        found = _Inert(file.read(end - start), names or {}, storage).load()
        file.seek(end)
        return found
    except OSError:
        raise
    except Exception as error:  # damaged pickles raise all kinds of errors
        why = str(error).partition(chr(10))[0] or type(error).__name__
        raise ValueError(f"damaged: {why.removeprefix('damaged: ')}") from error


def view(*arguments: Any) -> Tensor:
    """torch._utils._rebuild_tensor, _v2 and _v3: a view of a storage.

    (storage, offset, shape, strides, requires_grad, hooks, dtype of _v3, metadata)
    """
    storage, offset, shape, strides, *more = arguments
    marks = [about for about in more[2:] if isinstance(about, Mapping)]
    if any(about.get("neg") or about.get("conj") for about in marks):
        return unreadable(tuple(map(int, shape)), "a negated or conjugated view")
    dtype = getattr(more[2], "name", "") if len(more) > 2 else ""
    kind = dtype.removeprefix("torch.") if dtype.startswith("torch.") else None
    return storage.view(int(offset), tuple(map(int, shape)), tuple(map(int, strides)), kind)


def same(data: Any, *_: Any) -> Any:
    """torch's Parameter of a tensor."""
    return data


def rebuilt(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """torch's _rebuild_from_type_v2: a subclass of Tensor, or one with attributes."""
    return function(*arguments) if isinstance(function, Function) else unreadable((), "an object")


TENSORS: dict[str, Callable[..., Any]] = {
    f"torch.{name}": function
    for name, function in {
        "_utils._rebuild_tensor": view,
        "_utils._rebuild_tensor_v2": view,
        "_utils._rebuild_tensor_v3": view,
        "_utils._rebuild_parameter": same,
        "_utils._rebuild_parameter_with_state": same,
        "_utils._rebuild_device_tensor_from_numpy": same,
        "_utils._rebuild_device_tensor_from_cpu_tensor": same,
        "_tensor._rebuild_from_type_v2": rebuilt,
        "_utils._rebuild_sparse_tensor": lambda *_: unreadable((), "a sparse tensor"),
        "_utils._rebuild_sparse_csr_tensor": lambda *_: unreadable((), "a sparse tensor"),
        "_utils._rebuild_qtensor": lambda *_: unreadable((), "a quantised tensor"),
        "_utils._rebuild_nested_tensor": lambda *_: unreadable((), "a nested tensor"),
        "_utils._rebuild_meta_tensor_no_storage": lambda *_: unreadable((), "without numbers"),
        "_utils._rebuild_wrapper_subclass": lambda *_: unreadable((), "a subclass of Tensor"),
    }.items()
}
