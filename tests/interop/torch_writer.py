"""Writes PyTorch's files without PyTorch, and pickles of any names, whether they exist or not."""

import io
import pickle
import struct
import zipfile
from typing import ClassVar

import numpy as np

STORAGES = {"float32": "Float", "float64": "Double", "float16": "Half", "bfloat16": "BFloat16"}
STORAGES |= {"int64": "Long", "int8": "Char", "uint8": "Byte", "complex64": "ComplexFloat"}


class Name:
    """A global, module.name, by its name alone."""

    def __init__(self, full):
        self.full = full

    def __call__(self):  # pickle wants to see that what it calls could be called
        raise AssertionError


class Call:
    """A call of `function` with these arguments; state: what BUILD is given afterwards."""

    def __init__(self, function, *arguments, state=None):
        self.parts = function, arguments, state

    def __call__(self):
        raise AssertionError

    def __reduce__(self):
        return self.parts[: 2 + (self.parts[2] is not None)]


class Storage:
    """Numbers as bytes, under a class of PyTorch."""

    def __init__(self, kind, data, count):
        self.kind, self.data, self.count = kind, data, count


def tensor(array, kind=None, *, shape=None, strides=None, offset=0):
    """The call that makes a tensor of an array, whose bytes are of this kind."""
    kind = kind or array.dtype.name
    plain = kind in STORAGES
    count = array.size if plain else array.nbytes
    storage = Storage(STORAGES.get(kind, "Untyped"), array.tobytes(), count)
    shape = array.shape if shape is None else shape
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    arguments = storage, offset, shape, strides, False, Call(Name("collections.OrderedDict"))
    if plain:
        return Call(Name("torch._utils._rebuild_tensor_v2"), *arguments)
    return Call(Name("torch._utils._rebuild_tensor_v3"), *arguments, Name(f"torch.{kind}"))


class Pickler(pickle._Pickler):
    """storages: those met, by their keys."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def __init__(self, file, protocol=2):
        super().__init__(file, protocol)
        self.storages = {}

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        key = str(len(self.storages))
        self.storages[key] = obj
        return "storage", Name(f"torch.{obj.kind}Storage"), key, "cpu", obj.count

    def save_name(self, obj):
        module, _, name = obj.full.rpartition(".")
        self.write(b"c" + f"{module}\n{name}\n".encode())

    dispatch[Name] = save_name


def tensors(contents, known=None):
    """Contents whose arrays are tensors; a dictionary that is there twice stays one."""
    known = {} if known is None else known
    if isinstance(contents, dict):
        if id(contents) not in known:
            known[id(contents)] = {k: tensors(v, known) for k, v in contents.items()}
        return known[id(contents)]
    return tensor(contents) if isinstance(contents, np.ndarray) else contents


def write(path, contents, *, pickled=None, protocol=2):
    """A file of PyTorch >= 1.6; pickled: other bytes in place of the contents' pickle."""
    file = io.BytesIO()
    pickler = Pickler(file, protocol)
    pickler.dump(tensors(contents))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", file.getvalue() if pickled is None else pickled)
        for key, storage in pickler.storages.items():
            archive.writestr(f"model/data/{key}", storage.data)
        archive.writestr("model/version", "3\n")
    return path


def write_legacy(path, contents):
    """A file of PyTorch before 1.6."""
    file = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(part, file, 2)
    pickler = Pickler(file)
    pickler.dump(tensors(contents))
    pickle.dump(list(pickler.storages), file, 2)
    for storage in pickler.storages.values():
        file.write(struct.pack("<q", storage.count) + storage.data)
    path.write_bytes(file.getvalue())
    return path
