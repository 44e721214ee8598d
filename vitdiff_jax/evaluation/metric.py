"""The interface of metrics, and the statistics that they accumulate batch by batch.

An extractor, such as Inception, maps a batch to arrays with one row per image. A `Part` is one of
its outputs and an accumulator for it: moments, stored vectors, or a mean. A metric declares its
parts and computes its result from those of the samples and, if it compares, of the reference. Equal
parts are shared between metrics.
"""

import dataclasses
import io
import json
import math
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath

from vitdiff_jax.data.pipeline import Dataset
from vitdiff_jax.runtime import paths

KEEP = 50_000
"""Maximum number of vectors stored for a set of images: 410 MB for Inception's 2048 features."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images uint8 [N, H, W, C], their conditions, and the ground truth for paired metrics."""

    images: np.ndarray
    cond: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    truth: np.ndarray | None = None


class Extractor(Protocol):
    """Maps a batch to {output: array with one row per image}. Equal names mean equal results."""

    name: str

    def __call__(self, batch: Batch) -> Mapping[str, np.ndarray]: ...


class PairExtractor:
    """An extractor of {name: values(images, truth) [N]}."""

    def __init__(self, name: str, values: Callable[[np.ndarray, np.ndarray], np.ndarray]):
        self.name, self.values = name, values

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        if batch.truth is None:
            raise ValueError(f"{self.name} compares pairs of images: --truth is required")
        return {self.name: self.values(batch.images, batch.truth)}


class Accumulator(Protocol):
    """Accumulates rows [N, ...] of a set of `count` images; its state is `arrays`."""

    def __init__(self, count: int): ...
    def update(self, rows: np.ndarray) -> Any: ...
    def arrays(self) -> dict[str, np.ndarray]: ...
    def load(self, arrays: Mapping[str, np.ndarray]) -> None: ...


@dataclasses.dataclass(frozen=True)
class Part:
    """One output of an extractor, and its accumulator."""

    extractor: Any
    output: str
    kind: Callable[[int], Any]


class Measure(Protocol):
    """The interface of the class `Metric` of each file in this folder.

    It is created with a `Setting`; ValueError where it does not apply.
    name: with the network, as "fid/inception-2015-tf1". compares: whether it needs a reference.
    paired (absent: False): whether it compares each image with its ground truth. ideal (absent:
    None): the value of real images, where the best is the nearest to it. check(shape) (absent:
    fits all): ValueError for images [H, W, C] that it does not apply to. check_sizes(own, real)
    (absent: all do): ValueError for shapes of samples and real images that it cannot compare.
    """

    name: str
    compares: bool
    higher_is_better: bool
    parts: tuple[Part, ...]

    def result(self, samples: Sequence[Any], reference: Sequence[Any]) -> dict[str, float]:
        """The results, "value" first, from the accumulators of `parts` in their order.

        low, high (if any): the values of real images; it is said if "value" lies outside.
        """
        ...


class Mean:
    """The mean of numbers [N] and its standard error."""

    def __init__(self, count: int = 0):
        self.sums = np.zeros(3)

    def update(self, rows: np.ndarray) -> None:
        rows = np.asarray(rows, np.float64)
        self.sums += len(rows), rows.sum(), (rows**2).sum()

    def arrays(self):
        return {"sums": self.sums}

    def load(self, arrays):
        self.sums = arrays["sums"]

    @property
    def mean(self) -> float:
        return float(self.sums[1] / self.sums[0]) if self.sums[0] else math.nan

    @property
    def error(self) -> float:
        count, total, squares = self.sums
        if not (count and np.isfinite(squares)):
            return math.nan
        variance = max(squares - total**2 / count, 0) / max(count - 1, 1)
        return float(np.sqrt(variance / count))


class FiniteMean(Mean):
    """The mean of the finite ones of numbers [N], and how many are infinite."""

    def __init__(self, count: int = 0):
        super().__init__(count)
        self.infinite = 0

    def update(self, rows: np.ndarray) -> None:
        infinite = np.isinf(rows)
        self.infinite += int(infinite.sum())
        super().update(np.asarray(rows)[~infinite])

    def arrays(self):
        return super().arrays() | {"infinite": np.array(self.infinite)}

    def load(self, arrays):
        super().load(arrays)
        self.infinite = int(arrays["infinite"])


class PairMetric:
    """Base of metrics that are the mean of values(images, truth) over pairs of images."""

    name: str
    values: Callable[[np.ndarray, np.ndarray], np.ndarray]
    compares, paired = False, True
    kind = Mean

    def __init__(self, setting: "Setting"):
        output = self.name.partition("/")[0]
        extractor = setting.shared(lambda _: PairExtractor(output, self.values), output)
        self.parts = (Part(extractor, output, self.kind),)

    def result(self, samples, reference) -> dict[str, float]:
        return {"value": samples[0].mean, "standard_error": samples[0].error}


class Setting:
    """What metrics are created with.

    dataset: returns the config's data set, called on first use. inception: the path of the weights;
    None: download them. patch: side of the model's patches in pixels of an image; None: no patches.
    """

    def __init__(
        self,
        dataset: Callable[[], Dataset],
        mesh: jax.sharding.Mesh,
        inception: str | None = None,
        patch: int | None = None,
    ):
        self._dataset, self.mesh, self.inception, self.patch = dataset, mesh, inception, patch
        self._made: dict[Any, Any] = {}

    @property
    def dataset(self) -> Dataset:
        return self.shared(lambda setting: setting._dataset(), "dataset")

    def shared(self, make: Callable[["Setting"], Any], key: Any = None) -> Any:
        """make(self), called once and shared by all metrics."""
        key = make if key is None else key
        if key not in self._made:
            self._made[key] = make(self)
        return self._made[key]


class Measured:
    """The accumulators of parts for a set of `count` images."""

    def __init__(self, parts: Iterable[Part], count: int):
        self.count, self.done = count, 0
        self.found = {part: part.kind(count) for part in dict.fromkeys(parts)}

    def update(self, batch: Batch) -> None:
        """Add the next images of the set."""
        outputs = {part.extractor: None for part in self.found}
        outputs = {extractor: extractor(batch) for extractor in outputs}
        for part, accumulator in self.found.items():
            accumulator.update(outputs[part.extractor][part.output])
        self.done += len(batch.images)

    def of(self, metric: Measure) -> tuple[Any, ...]:
        """The accumulators of a metric's parts."""
        return tuple(self.found[part] for part in metric.parts)

    def save(self, path: epath.Path, about: Mapping[str, Any]) -> None:
        """Save the state atomically."""
        arrays = {
            f"{i} {part.output} {name}": array
            for i, (part, accumulator) in enumerate(self.found.items())
            for name, array in accumulator.arrays().items()
        }
        header = json.dumps({**about, "done": self.done, "count": self.count})
        write_npz(path, arrays | {"about": np.array(header)})

    def load(self, path: epath.Path, about: Mapping[str, Any]) -> bool:
        """Restore the state that `save` wrote with the same `about`; False if there is none."""
        try:
            arrays = read_npz(path) if path.is_file() else {}
            header = json.loads(str(arrays.pop("about", "{}")))
        except ValueError:  # damaged: start again
            return False
        wanted = json.loads(json.dumps({**about, "count": self.count}))
        if {name: header.get(name) for name in wanted} != wanted:
            return False
        for i, (part, accumulator) in enumerate(self.found.items()):
            start = f"{i} {part.output} "
            accumulator.load(
                {n.removeprefix(start): a for n, a in arrays.items() if n.startswith(start)}
            )
        self.done = header["done"]
        return True


class Vectors:
    """The vectors [N, D] as float32, or a random subset of `KEEP` (seed 0)."""

    def __init__(self, count: int):
        self.which = np.arange(count)
        if count > KEEP:
            self.which = np.sort(np.random.default_rng(0).choice(count, KEEP, replace=False))
        self.seen, self.filled = 0, 0
        self.kept: np.ndarray | None = None

    def update(self, rows: np.ndarray) -> None:
        if self.kept is None:
            self.kept = np.empty((len(self.which), rows.shape[1]), np.float32)
        end = self.seen + len(rows)
        wanted = self.which[
            np.searchsorted(self.which, self.seen) : np.searchsorted(self.which, end)
        ]
        self.kept[self.filled : self.filled + len(wanted)] = rows[wanted - self.seen]
        self.seen, self.filled = end, self.filled + len(wanted)

    def arrays(self):
        return {"vectors": self.vectors, "seen": np.array(self.seen)}

    def load(self, arrays):
        vectors, self.seen = arrays["vectors"], int(arrays["seen"])
        self.filled = len(vectors)
        self.kept = np.empty((len(self.which), vectors.shape[1]), np.float32) if self.seen else None
        if self.kept is not None:
            self.kept[: self.filled] = vectors

    @property
    def vectors(self) -> np.ndarray:
        """The vectors so far, [K, D]."""
        return np.empty((0, 0), np.float32) if self.kept is None else self.kept[: self.filled]


def write_npz(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to an .npz file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file := io.BytesIO(), allow_pickle=False, **arrays)
    paths.write(path, file.getvalue())


def read_npz(path: pathlib.Path | epath.Path, without: str = "") -> dict[str, Any]:
    """All arrays of an .npz file, without unpickling. Raises ValueError if it is damaged.

    without: an array that is not read; its value is None.
    """
    try:
        with path.open("rb") as stored:
            if not zipfile.is_zipfile(stored):  # NumPy would advise to unpickle it
                raise ValueError("no zip archive, or one that is cut off")
            stored.seek(0)
            with np.load(stored, allow_pickle=False) as file:
                return {name: None if name == without else file[name] for name in file.files}
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # damaged files raise errors of zipfile, zlib, tokenize and others
        raise ValueError(f"{path}: not a readable .npz file: {error}") from error
