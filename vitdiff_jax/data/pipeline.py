"""The input pipeline: the batch of a step is a function of (seed, step) alone.

So checkpoints contain no pipeline state, and any number of processes sees the same global batches:
the examples are shuffled first (a new permutation each epoch), then augmented with random numbers
that depend on the position in that order, then batched; last, each process takes its part of every
batch.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

Example = dict[str, np.ndarray]
"""image uint8 [H, W, C], and one array for each of `Dataset.conditions`."""


class DataError(RuntimeError):
    """Missing, damaged or invalid data; the message is one line."""


class Source(Protocol):
    """Examples by index."""

    def __len__(self) -> int: ...

    def example(self, index: int, rng: np.random.Generator | None = None) -> Example:
        """Example `index`, augmented with `rng`; None: without augmentation."""
        ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What `dataset(**options)` of each file in this folder returns.

    shape: (height, width, channels) of every image.
    conditions: what an example has besides its image, as stored in checkpoints:
        "label": class names; the example has int32 [], -1 for none
        "attributes": attribute names; int8 [K]: 1 present, 0 absent, -1 unknown
        "text": the maximum length in bytes; int16 [L], UTF-8, padded with -1
        "embedding": {"length": L, "width": W, "encoder": name}; float16 [L, W], the output of a
            frozen text encoder, padded with 0
        "hint": the number of channels of a conditioning image; float32 [H, W, channels]
    origin: one line for the log: what is read, and from where.
    crop: how the published images are cropped; metrics compare only within one crop.
    mark: of the content, see `marks`. card: what else is known, as JSON, see `card`.
    """

    train: Source
    heldout: Source
    shape: tuple[int, int, int]
    conditions: Mapping[str, Any]
    origin: str = ""
    crop: str = "none"
    mark: str = ""
    card: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def classes(self) -> int | None:
        """The number of classes; None without labels."""
        return len(self.conditions["label"]) if "label" in self.conditions else None


@dataclasses.dataclass(frozen=True)
class InMemory:
    """A `Source` of arrays in memory: images uint8 [N, H, W, C], labels int32 [N]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.images)

    def example(self, index, rng=None):
        return {"image": self.images[index], "label": self.labels[index]}


def batches(
    source: Source,
    batch: int,
    *,
    seed: int,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
    threads: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's part of every global batch from step `start` on, indefinitely.

    Yields {"image": uint8 [batch / processes, H, W, C], "index": int32, ...}, where `index` is the
    position in the global batch. `threads` threads prefetch, each a part of a batch.
    """
    size = batch // processes
    index = np.arange(process * size, (process + 1) * size, dtype=np.int32)
    endless = 2**62 // len(source)  # grain's own endless repeat overflows in batches of one
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(endless)
    examples = order.random_map(lambda i, rng: source.example(int(i), rng))
    parts = examples.batch(size)[start * processes + process :: processes]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    for part in parts.to_iter_dataset(options):
        yield part | {"index": index}


def shard(first: int, end: int, process: int, processes: int) -> np.ndarray:
    """This process's part of range(first, end), of the same length on all processes.

    The parts of the last processes may repeat the last number.
    """
    length = -(-(end - first) // processes)
    start = first + process * length
    return np.minimum(np.arange(start, start + length), end - 1)


def ordered_batches(
    source: Source, which: Sequence[int], batch: int, threads: int = 1,
    process: int = 0, processes: int = 1,
) -> Iterator[dict[str, np.ndarray]]:  # fmt: skip
    """The examples `which` without augmentation, with their "index" in `which`, in batches.

    The last batch may be smaller. Yields this process's `shard` of each. `threads` threads
    prefetch, each a part of a batch.
    """
    ends = [min(first + batch, len(which)) for first in range(0, len(which), batch)]
    parts = [shard(i * batch, end, process, processes) for i, end in enumerate(ends)]
    order: Any = np.concatenate([np.arange(0), *parts])
    examples = grain.MapDataset.source(order).map(
        lambda i: source.example(int(which[i])) | {"index": np.array(i, np.int32)}
    )
    batches = examples.batch(-(-batch // processes), drop_remainder=False)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    yield from batches.to_iter_dataset(options)


def stacked(source: Source, which: range | None = None) -> dict[str, np.ndarray]:
    """Examples without augmentation, all if `which` is None, stacked into one array per name."""
    examples = [source.example(i) for i in (range(len(source)) if which is None else which)]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}
