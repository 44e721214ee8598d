"""Published weights: downloaded, verified by SHA-256, and cached as safetensors.

The cache is ~/.cache/vitdiff_jax/weights ($XDG_CACHE_HOME); without a network connection the
published file can be put there by hand.
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
    """Missing or invalid published weights; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Published:
    """A published file."""

    url: str
    sha256: str
    key: str = ""
    """The config key of its path."""

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


def read(published: Published, path: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a published file.

    path: the file, or the safetensors converted from it on another machine; None: from the cache,
    downloaded if necessary. Raises WeightsError.
    """
    home = _home()
    made = home / f"{pathlib.Path(published.file).stem}.safetensors"
    if path is None and made.is_file():
        return _checked(made, published)
    source = home / published.file if path is None else paths.local_copy(path)
    if path is not None and not source.is_file():
        raise WeightsError(f"{source}: no such file")
    if source.suffix == ".safetensors":
        return _checked(source, published)
    if not source.is_file():
        _fetch(published, source)
    found = hashlib.sha256(source.read_bytes()).hexdigest()
    if found != published.sha256:
        raise WeightsError(
            f"{source}: its SHA-256 is {found[:8]}..., not {published.sha256[:8]}... as for"
            f" {published.url}; remove it, or give the right file"
        )
    try:
        tensors = {name: np.asarray(t) for name, t in torch_files.read(source).items()}
    except ValueError as error:
        raise WeightsError(str(error)) from error
    with contextlib.suppress(OSError):  # a cache that cannot be written is not an error
        _keep(tensors, made, published)
    return tensors


def _home() -> pathlib.Path:
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return base / "vitdiff_jax" / "weights"


def _fetch(published: Published, target: pathlib.Path) -> None:
    """Download to the cache, atomically."""
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(published.url, timeout=30) as answer, partial.open("wb") as out:
            while block := answer.read(2**20):
                out.write(block)
        if hashlib.sha256(partial.read_bytes()).hexdigest() != published.sha256:
            raise OSError(f"the download of {partial.stat().st_size:,} bytes has a wrong SHA-256")
        partial.replace(target)
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(
            f"cannot download {published.url} ({error}); download it on another machine and put it"
            f" into {target.parent}, or give its path, {published.key}=FILE"
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
    """The tensors of a safetensors file that `_keep` wrote, verified by their digest."""
    try:
        with safe_open(made, "numpy") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"{made}: damaged ({error}); remove it") from error
    if about.get("sha256") != published.sha256:
        raise WeightsError(f"{made}: was not converted from {published.url}")
    if about.get("tensors") != _digest(tensors):
        raise WeightsError(f"{made}: damaged, its tensors have changed; remove it")
    return tensors


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of all names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape};".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
