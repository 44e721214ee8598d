"""Files of reference statistics in ADM's layout: `mu`, `sigma`, `mu_s`, `sigma_s`.

The first two are the mean and covariance of a network's pooled features, the others those of the
spatial features for sFID; `features`, float32 [K, D], are for precision, recall and KID, and
`about` describes the data and network in JSON. Files of ADM, JiT and torch-fidelity have no
`about`; their network is Inception. Metrics without statistics in the file are computed from its
images where it has them (`arr_0`, as in ADM's files).
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from vitdiff_jax.data.pipeline import DataError
from vitdiff_jax.evaluation import networks
from vitdiff_jax.evaluation.frechet import Gaussian, Moments
from vitdiff_jax.evaluation.metric import (
    Accumulator,
    Measure,
    Measured,
    Part,
    Vectors,
    read_npz,
    write_npz,
)  # fmt: skip
from vitdiff_jax.interop import torch_files

NO_FILE = (
    "use config.evaluate.reference=train or heldout, or an .npz file with images if it needs no"
    " class labels"
)
GAUSSIANS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A Gaussian from a file, in place of `Moments`."""

    mean: np.ndarray
    covariance: np.ndarray

    def gaussian(self) -> Gaussian:
        return self.mean, self.covariance


@dataclasses.dataclass(frozen=True)
class Kept:
    """Feature vectors from a file, in place of `Vectors`."""

    vectors: np.ndarray


def parts_of(network: networks.Network) -> list[Part]:
    """The parts that a file contains for a network."""
    parts = [Part(network, "pool", Moments), Part(network, "pool", Vectors)]
    if network.name == networks.INCEPTION:
        parts.append(Part(network, "spatial", Moments))
    return parts


def write(
    path: epath.Path, network: networks.Network, measured: Measured, about: Mapping[str, Any]
) -> None:
    """Write the statistics of `parts_of(network)`."""
    arrays = {"about": np.array(json.dumps({**about, "network": network.name}))}
    for part in parts_of(network):
        found = measured.found[part]
        if part.kind is Vectors:
            arrays["features"] = found.vectors
        else:
            arrays |= zip(GAUSSIANS[part.output], found.gaussian())
    write_npz(path, arrays)


class References:
    """The contents of a file of reference statistics. Raises DataError for other files."""

    def __init__(self, path: pathlib.Path):
        self.path, arrays = path, _read(path)
        self.about = self._about(arrays.pop("about", "{}"))
        self.has_images = "arr_0" in arrays
        self.found: dict[tuple[str, Any], Any] = {}
        for output, (mu, sigma) in GAUSSIANS.items():
            if mu in arrays and sigma in arrays:
                mean, covariance = self._numbers(arrays, mu, 1), self._numbers(arrays, sigma, 2)
                if covariance.shape != (len(mean), len(mean)):
                    raise DataError(
                        f"{path}: {mu} has shape {mean.shape}, but {sigma} {covariance.shape}"
                    )
                self.found[output, Moments] = Fitted(mean, covariance)
        if "features" in arrays:
            features = self._numbers(arrays, "features", 2)
            known = self.found.setdefault(("pool", Moments), Moments().update(features))
            if len(known.gaussian()[0]) != features.shape[1]:
                raise DataError(
                    f"{path}: features have {features.shape[1]} columns, which does not match mu"
                )
            self.found["pool", Vectors] = Kept(features.astype(np.float32))
        self.network = self.about.get("network", networks.INCEPTION if self.found else None)
        if not self.found and not self.has_images:
            raise DataError(f"{path}: has none of mu and sigma, features, or images arr_0")

    def _about(self, text: Any) -> dict[str, Any]:
        try:
            about = json.loads(str(text))
        except ValueError:
            about = None
        if not isinstance(about, dict):
            raise DataError(f"{self.path}: the entry about is damaged")
        return about

    def _numbers(self, arrays: Mapping[str, Any], name: str, axes: int) -> np.ndarray:
        """An array as float64. Raises DataError unless it is finite and has so many axes."""
        try:
            array = np.asarray(arrays[name], np.float64)
        except (ValueError, TypeError) as error:
            raise DataError(f"{self.path}: {name} is not numeric") from error
        if array.ndim != axes or not array.size or len(array) < 2:
            raise DataError(f"{self.path}: {name} has invalid shape {array.shape}")
        if not np.isfinite(array).all():
            raise DataError(f"{self.path}: {name} is not finite")
        return array

    def lacks(self, metric: Measure) -> list[Part]:
        """The metric's parts missing in the file. Raises DataError if it cannot provide them."""
        if self.has_images and any(part.extractor.name != self.network for part in metric.parts):
            return list(metric.parts)
        for part in metric.parts:
            if part.extractor.name != self.network:
                made = isinstance(part.extractor, networks.Network)
                raise DataError(
                    f"{self.path}: has statistics of {self.network}, but {metric.name} needs"
                    f" {part.extractor.name}; "
                    + ("compute them with --mode=statistics" if made else NO_FILE)
                )
        return [part for part in metric.parts if (part.output, part.kind) not in self.found]

    def of(self, part: Part) -> Accumulator:
        """The statistics of a part that the file contains, in place of its accumulator."""
        return self.found[part.output, part.kind]


def _read(path: pathlib.Path) -> dict[str, Any]:
    """The arrays of an .npz, .pt or .pth file by ADM's names, without the images."""
    if not path.exists():
        raise DataError(
            f"{path}: no such file of reference statistics (config.evaluate.reference: a file, or"
            " heldout, or train)"
        )
    if path.is_dir() or path.suffix not in (".npz", ".pt", ".pth", ".safetensors"):
        what = "a folder" if path.is_dir() else f"a {path.suffix or 'plain'} file"
        raise DataError(
            f"{path}: {what}, but a reference is a file of statistics or images, .npz, .pt or .pth;"
            " --mode=statistics makes one of the config's data"
        )
    try:
        if path.suffix == ".npz":
            return read_npz(path, without="arr_0")
        found = torch_files.read(path)
    except ValueError as error:
        raise DataError(str(error)) from error
    return found if isinstance(found, dict) else {"features": found}  # torch-fidelity's
