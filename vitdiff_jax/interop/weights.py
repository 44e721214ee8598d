"""Published weights: found or fetched, checked by SHA-256, kept as safetensors.

They are kept in ~/.cache/vitdiff_jax/weights ($XDG_CACHE_HOME), where a person without a network
may also put the published file.
"""

import contextlib
import dataclasses
import hashlib
import http.client
import os
import pathlib
import urllib.request
from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vitdiff_jax.interop import torch_files
from vitdiff_jax.runtime import paths


class WeightsError(RuntimeError):
    """Published weights that are missing or not what they should be; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Published:
    """A file as its publisher gives it away."""

    url: str
    sha256: str
    key: str = ""
    """The config key for its path."""

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


def read(published: Published, path: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a published file.

    path: that file, or the safetensors made from it on another machine; None: from the cache, or
    fetched into it. Raises WeightsError.
    """
    home = _home()
    made = home / f"{pathlib.Path(published.file).stem}.safetensors"
    if path is None and made.is_file():
        return _checked(made, published)
    source = home / published.file if path is None else paths.local(path).expanduser()
    if path is not None and not source.is_file():
        raise WeightsError(f"{source}: there is no such file")
    if source.suffix == ".safetensors":
        return _checked(source, published)
    if not source.is_file():
        _fetch(published, source)
    found = hashlib.sha256(source.read_bytes()).hexdigest()
    if found != published.sha256:
        raise WeightsError(
            f"{source}: its SHA-256 is {found[:8]}..., not {published.sha256[:8]}... of"
            f" {published.url}; remove it, or give the right file"
        )
    try:
        tensors = torch_files.read(source)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    with contextlib.suppress(OSError):  # where nothing can be written, they are read again
        _keep(tensors, made, published)
    return tensors


def _home() -> pathlib.Path:
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return base / "vitdiff_jax" / "weights"


def _fetch(published: Published, target: pathlib.Path) -> None:
    """Download into the cache, whole or not at all."""
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(published.url, timeout=30) as answer, partial.open("wb") as out:
            while block := answer.read(2**20):
                out.write(block)
        if hashlib.sha256(partial.read_bytes()).hexdigest() != published.sha256:
            raise OSError(f"what arrived, {partial.stat().st_size:,} bytes, has another SHA-256")
        partial.replace(target)
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(
            f"cannot fetch {published.url} ({error}); fetch it on another machine and put it into"
            f" {target.parent}, or give its path, {published.key}=FILE"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _keep(tensors: Mapping[str, np.ndarray], made: pathlib.Path, published: Published) -> None:
    made.parent.mkdir(parents=True, exist_ok=True)
    partial = made.with_name(f"{made.name}.{os.getpid()}.partial")
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    about = {"url": published.url, "sha256": published.sha256, "tensors": _digest(tensors)}
    save_file(tensors, partial, about)
    partial.replace(made)


def _checked(made: pathlib.Path, published: Published) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file that `_keep` wrote, if they are still those."""
    try:
        with safe_open(made, "numpy") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"{made}: damaged ({error}); remove it") from error
    if about.get("sha256") != published.sha256:
        raise WeightsError(f"{made}: was not made from {published.url}")
    if about.get("tensors") != _digest(tensors):
        raise WeightsError(f"{made}: damaged, its tensors have changed; remove it")
    return tensors


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    """One SHA-256 of all names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape};".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
