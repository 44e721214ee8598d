"""What metrics need of a set of images, added up batch by batch.

An extractor looks at a batch (Inception, say) and gives arrays, one row an image. A `Part` is one
of them with the way it is added up: moments, vectors that are kept, a mean. A metric names its
parts and computes its numbers from those of the samples and, if it compares, of the reference.
Metrics that name the same part share it.
"""

import dataclasses
import io
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath

from vitdiff_jax.data.pipeline import Dataset
from vitdiff_jax.runtime import paths

KEEP = 50_000
"""Vectors that are kept of a set, at most: of Inception's 2048 numbers these are 410 MB."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images uint8 [N, H, W, C], their conditions, and for pairs the true images."""

    images: np.ndarray
    cond: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    truth: np.ndarray | None = None


class Extractor(Protocol):
    """Rows of numbers for images. What has one `name` gives the same numbers."""

    name: str

    def __call__(self, batch: Batch) -> Mapping[str, np.ndarray]: ...


class OfPairs:
    """An extractor: {name: values [N]} of values(images, truth)."""

    def __init__(self, name: str, values: Callable[[np.ndarray, np.ndarray], np.ndarray]):
        self.name, self.values = name, values

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        if batch.truth is None:
            raise ValueError(f"{self.name} compares pairs of images: --truth is needed")
        return {self.name: self.values(batch.images, batch.truth)}


class Accumulator(Protocol):
    """Adds up rows [N, ...] of a set of `count` images; its state is `arrays`."""

    def __init__(self, count: int): ...
    def update(self, rows: np.ndarray) -> Any: ...
    def arrays(self) -> dict[str, np.ndarray]: ...
    def load(self, arrays: Mapping[str, np.ndarray]) -> None: ...


@dataclasses.dataclass(frozen=True)
class Part:
    """One output of an extractor, and what adds it up."""

    extractor: Any
    output: str
    kind: Callable[[int], Any]


class Measure(Protocol):
    """What a file of this folder gives as `Metric`; made from a `Setting`, ValueError if it cannot.

    name: with the evaluator, as "fid/inception-2015-tf1". compares: needs a reference.
    """

    name: str
    compares: bool
    higher_is_better: bool
    parts: tuple[Part, ...]

    def result(self, samples: Sequence[Any], reference: Sequence[Any]) -> dict[str, float]:
        """The numbers, "value" first, from the accumulators of `parts`, in that order."""
        ...


class Setting:
    """What metrics are made from.

    dataset: gives the config's data set, read when it is first needed. inception: the path of the
    weights, None to fetch them.
    """

    def __init__(
        self,
        dataset: Callable[[], Dataset],
        mesh: jax.sharding.Mesh,
        inception: str | None = None,
    ):
        self._dataset, self.mesh, self.inception = dataset, mesh, inception
        self._made: dict[Any, Any] = {}

    @property
    def dataset(self) -> Dataset:
        return self.shared(lambda setting: setting._dataset(), "dataset")

    def shared(self, make: Callable[["Setting"], Any], key: Any = None) -> Any:
        """make(self), made once for all metrics that ask for it."""
        key = make if key is None else key
        if key not in self._made:
            self._made[key] = make(self)
        return self._made[key]


class Measured:
    """The accumulators of some parts for a set of `count` images."""

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
        """Write what was added up so far, whole or not at all."""
        arrays = {
            f"{i} {part.output} {name}": array
            for i, (part, accumulator) in enumerate(self.found.items())
            for name, array in accumulator.arrays().items()
        }
        header = json.dumps({**about, "done": self.done, "count": self.count})
        write_npz(path, arrays | {"about": np.array(header)})

    def load(self, path: epath.Path, about: Mapping[str, Any]) -> bool:
        """Go on from what `save` wrote for the same `about`; False if there is nothing of it."""
        try:
            arrays = read_npz(path) if path.is_file() else {}
            header = json.loads(str(arrays.pop("about", "{}")))
        except ValueError:  # damaged: it is measured anew
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


class Mean:
    """Mean of numbers [N], and the standard error of that mean."""

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
        return float(self.sums[1] / self.sums[0])

    @property
    def error(self) -> float:
        count, total, squares = self.sums
        if not np.isfinite(squares):  # of equal images, whose ratio to their noise is infinite
            return float("nan")
        variance = max(squares - total**2 / count, 0) / max(count - 1, 1)
        return float(np.sqrt(variance / count))


class Vectors:
    """The vectors [N, D] themselves as float32, at most `KEEP`: of more a random part, seed 0."""

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
        """Those so far, [K, D]."""
        return np.empty((0, 0), np.float32) if self.kept is None else self.kept[: self.filled]


def write_npz(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Arrays into an .npz file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file := io.BytesIO(), allow_pickle=False, **arrays)
    paths.write(path, file.getvalue())


def read_npz(path: pathlib.Path | epath.Path, without: str = "") -> dict[str, Any]:
    """All arrays of an .npz file, nothing unpickled. Raises ValueError if it is damaged.

    without: an array that is not read, None stands in its place.
    """
    try:
        with path.open("rb") as stored, np.load(stored, allow_pickle=False) as file:
            return {name: None if name == without else file[name] for name in file.files}
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # of damaged files: zipfile's, zlib's, tokenize's and others
        raise ValueError(f"{path}: not an .npz file that can be read: {error}") from error
