"""Reference statistics in files, in the layout of ADM's: `mu`, `sigma`, `mu_s`, `sigma_s`.

The first two are the mean and covariance of a network's pool, the others those of the map for sFID;
`features`, float32 [K, D], are for precision, recall and KID, and `about` says in JSON what was
measured, and how. Files of ADM, JiT and torch-fidelity have no `about`: they are of Inception.
Where there are images instead (`arr_0`, as in ADM's files) they are measured.
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
from vitdiff_jax.evaluation.measuring import (
    Accumulator,
    Measure,
    Measured,
    Part,
    Vectors,
    read_npz,
    write_npz,
)  # fmt: skip
from vitdiff_jax.interop import torch_files

GAUSSIANS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A Gaussian that was fitted elsewhere; stands for `Moments`."""

    mean: np.ndarray
    covariance: np.ndarray

    def gaussian(self) -> Gaussian:
        return self.mean, self.covariance


@dataclasses.dataclass(frozen=True)
class Kept:
    """Vectors that were kept elsewhere; stands for `Vectors`."""

    vectors: np.ndarray


def parts_of(network: networks.Network) -> list[Part]:
    """What a file holds of a network."""
    parts = [Part(network, "pool", Moments), Part(network, "pool", Vectors)]
    if network.name == networks.INCEPTION:
        parts.append(Part(network, "spatial", Moments))
    return parts


def write(
    path: epath.Path, network: networks.Network, measured: Measured, about: Mapping[str, Any]
) -> None:
    """Write what was measured of `parts_of(network)`."""
    arrays = {"about": np.array(json.dumps({**about, "network": network.name}))}
    for part in parts_of(network):
        found = measured.found[part]
        if part.kind is Vectors:
            arrays["features"] = found.vectors
        else:
            arrays |= zip(GAUSSIANS[part.output], found.gaussian())
    write_npz(path, arrays)


class References:
    """What a file of reference statistics holds. Raises DataError if it is none."""

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
                        f"{path}: {mu} has the shape {mean.shape}, {sigma} {covariance.shape}; they"
                        " do not belong together"
                    )
                self.found[output, Moments] = Fitted(mean, covariance)
        if "features" in arrays:
            features = self._numbers(arrays, "features", 2)
            known = self.found.setdefault(("pool", Moments), Moments().update(features))
            if len(known.gaussian()[0]) != features.shape[1]:
                raise DataError(f"{path}: features of {features.shape[1]} numbers are not mu's")
            self.found["pool", Vectors] = Kept(features.astype(np.float32))
        self.network = self.about.get("network", networks.INCEPTION if self.found else None)
        if not self.found and not self.has_images:
            raise DataError(f"{path}: holds neither mu and sigma nor features nor images arr_0")

    def _about(self, text: Any) -> dict[str, Any]:
        try:
            about = json.loads(str(text))
        except ValueError:
            about = None
        if not isinstance(about, dict):
            raise DataError(f"{self.path}: what it says about itself is damaged")
        return about

    def _numbers(self, arrays: Mapping[str, Any], name: str, axes: int) -> np.ndarray:
        """An array as float64, if it is one of finite numbers with so many axes."""
        try:
            array = np.asarray(arrays[name], np.float64)
        except (ValueError, TypeError) as error:
            raise DataError(f"{self.path}: {name} holds no numbers") from error
        if array.ndim != axes or not array.size or len(array) < 2:
            raise DataError(f"{self.path}: {name} has the impossible shape {array.shape}")
        if not np.isfinite(array).all():
            raise DataError(f"{self.path}: {name} is not finite")
        return array

    def lacks(self, metric: Measure) -> list[Part]:
        """The metric's parts that are not in the file; DataError if it cannot have them."""
        if self.has_images and any(part.extractor.name != self.network for part in metric.parts):
            return list(metric.parts)
        for part in metric.parts:
            if part.extractor.name != self.network:
                raise DataError(
                    f"{self.path}: is of {self.network}, but {metric.name} needs"
                    f" {part.extractor.name}; make it with --mode=statistics"
                )
        return [part for part in metric.parts if (part.output, part.kind) not in self.found]

    def of(self, part: Part) -> Accumulator:
        """What stands for the accumulator of a part that it does not lack."""
        return self.found[part.output, part.kind]


def _read(path: pathlib.Path) -> dict[str, Any]:
    """The arrays of an .npz, .pt or .pth file, images left out, by ADM's names."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file of reference statistics")
    try:
        if path.suffix == ".npz":
            return read_npz(path, without="arr_0")
        found = torch_files.read(path)
    except ValueError as error:
        raise DataError(str(error)) from error
    return found if isinstance(found, dict) else {"features": found}  # torch-fidelity's
