"""Reads PyTorch's and safetensors files without PyTorch. No code of a file is run.

A file is read by its contents, whatever its suffix: PyTorch's zip archives (since 1.6), the format
before, safetensors, and the index of a file in shards (`model.safetensors.index.json`). What a file
holds besides tensors, numbers and text is `torch_pickle.Unread`.
"""

import dataclasses
import functools
import io
import json
import pathlib
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from vitdiff_jax.interop import torch_pickle
from vitdiff_jax.interop.tensors import Tensor, item_size, strided, unreadable

INDEX = ".index.json"
SAFETENSORS = {  # their types by their names in a file
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "C64": "complex64",
}  # fmt: skip
STORAGES = {  # PyTorch's storages by the name of their class; UntypedStorage is bytes
    "Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16",
    "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8",
    "Bool": "bool", "ComplexFloat": "complex64", "ComplexDouble": "complex128", "Untyped": "uint8",
}  # fmt: skip
LEGACY = 0x1950A86A20F9469CFC6C
"""The number that PyTorch's files before 1.6 begin with."""

STARTS = {  # of files that are taken for weights
    b"version https://git-lfs": "it is a Git LFS pointer, not the file: run `git lfs pull`",
    b"\x89HDF": "it is an HDF5 file",
    b"GGUF": "it is a GGUF file",
    b"\x1f\x8b": "it is gzipped; unpack it",
    b"\x89PNG": "it is an image",
    b"\xff\xd8\xff": "it is an image",
    b"Rar!": "it is an archive; unpack it",
    b"7z\xbc\xaf": "it is an archive; unpack it",
    b"{": "it is JSON",
}


def read(path: pathlib.Path) -> Any:
    """The contents of a file: {name: `Tensor`}, nested or not, or one tensor.

    Raises ValueError, one line that says what it is instead.
    """
    try:
        if path.name.endswith(INDEX):
            return _shards(path)
        return _READERS[kind(path)](path)
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: not a file of tensors: {error}") from error


def kind(path: pathlib.Path) -> str | None:
    """The format of a file by its first bytes: "zip", "safetensors", "pickle", or None."""
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if start[4:] == b"\0\0\0\0{":  # a length below 4 GiB, then JSON
        return "safetensors"
    return "pickle" if start[:1] == b"\x80" else None


def _other(path: pathlib.Path) -> Any:
    """Say what a file of no known format is."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise ValueError("it is empty")
    for known, what in STARTS.items():
        if start.startswith(known):
            raise ValueError(what)
    if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<":
        raise ValueError("it is a web page: the download was refused; get the file itself")
    if start[257:262] == b"ustar":
        raise ValueError("it is a tar archive; unpack it, or save it again with PyTorch 1.6")
    if not start.strip(b"\0"):
        raise ValueError("it is all zeros: the download did not finish")
    raise ValueError("it is neither of PyTorch nor safetensors")


@dataclasses.dataclass(frozen=True)
class Storage:
    """Numbers in a file, shared by tensors. kind: their type. bytes_of: reads them."""

    kind: str
    bytes_of: Callable[[], bytes]

    def view(
        self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], kind: str | None
    ) -> Tensor:
        """A tensor of this shape in it; kind: another type (float8 has no storage of its own)."""
        kind = kind or self.kind
        return Tensor(shape, kind, lambda: strided(shape, strides, offset, kind, self.bytes_of()))

    def __setstate__(self, state: Any) -> None:
        """Pickles cannot change it."""


def _identified(pid: Any) -> tuple[str, str, int]:
    """(type, key, number of bytes) of ("storage", class, key, device, numbers, ...)."""
    # The key too: nested tuples may be endless as text.
    if not (
        isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and isinstance(pid[2], str)
    ):
        raise ValueError("a storage without a name")
    name = getattr(pid[1], "name", "").rpartition(".")[2].removesuffix("Storage")
    found = STORAGES.get(name, f"of the unknown type {name}Storage")
    size = item_size(found) if found in STORAGES.values() else 1
    return found, pid[2], int(pid[4]) * size


def _zip(path: pathlib.Path) -> Any:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ValueError("it is cut off or damaged; get it again") from error
    names = archive.namelist()
    pickles = [name for name in names if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        inside = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
        raise ValueError(f"it is a zip archive of other things ({inside}); unpack it")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in names:
        raise ValueError("it is a TorchScript program; save its state_dict()")
    if f"{root}byteorder" in names and _record(archive, f"{root}byteorder") == b"big":
        raise ValueError("its numbers are big-endian; save it again on another machine")

    @functools.lru_cache(1)  # tensors that share a storage often come one after another
    def record(key: str, size: int) -> bytes:
        return _record(archive, f"{root}data/{key}", size)

    def storage(pid: Any) -> Storage:
        found, key, size = _identified(pid)
        return Storage(found, lambda: record(key, size))

    pickled = io.BytesIO(_record(archive, pickles[0]))
    return torch_pickle.read(pickled, torch_pickle.TENSORS, storage)


def _record(archive: zipfile.ZipFile, name: str, size: int = 0) -> bytes:
    """A record, which is as large as the file shows, of at least this many bytes."""
    try:
        if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise ValueError("its records are compressed; save it again with torch.save")
        data = archive.read(name)  # checks the CRC
    except (KeyError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"damaged: {str(error).strip(chr(39))}") from error
    if len(data) < size:
        raise ValueError(f"damaged: {name} has {len(data)} bytes, not {size}")
    return data


def _legacy(path: pathlib.Path) -> Any:
    """Pickles of a magic number, a version, facts, the contents and the storages' keys; storages.

    A storage is the number of its numbers and these. Views of storages were never saved by modules.
    """
    found: dict[str, int] = {}  # the storages' numbers of bytes
    places: dict[str, int] = {}

    def storage(pid: Any) -> Storage:
        kind, key, size = _identified(pid)
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError("a storage that is a view of another; save it again with PyTorch 1.6")
        found[key] = size
        return Storage(kind, lambda: _at(path, places[key], size))

    with path.open("rb") as file:
        if torch_pickle.read(file) != LEGACY:
            raise ValueError("a pickle of something else than PyTorch's")
        torch_pickle.read(file)  # the version
        torch_pickle.read(file)  # facts about the machine
        contents = torch_pickle.read(file, torch_pickle.TENSORS, storage)
        keys, place = torch_pickle.read(file), file.tell()
    named = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not named or set(keys) != found.keys():
        raise ValueError("damaged: its storages are not those of its tensors")
    for key in keys:
        places[key] = place + 8
        place += 8 + found[key]
    if place > (size := path.stat().st_size):
        raise ValueError(f"it is cut off: {size:,} of {place:,} bytes; get it again")
    return contents


def _at(path: pathlib.Path, place: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(place)
        return file.read(size)


def _safetensors(path: pathlib.Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "numpy"):  # checks that the header describes the whole file
            pass
    except SafetensorError as error:
        raise ValueError(f"it is a damaged or cut safetensors file ({error})") from error
    with path.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)

    def tensor(about: Mapping[str, Any]) -> Tensor:
        shape, (start, end) = tuple(about["shape"]), about["data_offsets"]
        kind = SAFETENSORS.get(about["dtype"])
        if kind is None:
            return unreadable(shape, f"of the unknown type {about['dtype']}")

        def numbers() -> np.ndarray:
            data = _at(path, 8 + size + start, end - start)
            return np.frombuffer(data, jnp.dtype(kind)).reshape(shape)

        return Tensor(shape, kind, numbers)

    return {name: tensor(about) for name, about in header.items()}


def _weight_map(path: pathlib.Path) -> dict[str, str]:
    """{tensor: the name of its shard} of an index."""
    try:
        found = json.loads(path.read_text("utf-8-sig"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"it is no index of shards ({type(error).__name__}: {error})") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ValueError("it is no index of shards: weight_map does not name a file per tensor")
    return found


def _shards(path: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of all files that an index names, each from the one that is said to have it."""
    homes = _weight_map(path)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(homes.values())):
        shard = path.parent / name
        if shard.parent != path.parent or not shard.is_file():
            raise ValueError(f"its shard {name} is not beside it")
        if name.endswith(INDEX) or not isinstance(found := read(shard), dict):
            raise ValueError(f"its shard {name} has no named tensors")
        tensors |= {key: value for key, value in found.items() if homes.get(key, name) == name}
    return tensors


_READERS: dict[str | None, Callable[[pathlib.Path], Any]] = {
    "zip": _zip, "safetensors": _safetensors, "pickle": _legacy, None: _other,
}  # fmt: skip


def files(path: pathlib.Path) -> list[pathlib.Path]:
    """The files that `read` reads: the file, or the index and its shards."""
    if not path.name.endswith(INDEX):
        return [path]
    return [path, *(path.parent / name for name in sorted(set(_weight_map(path).values())))]
