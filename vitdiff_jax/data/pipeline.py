"""From a data set to batches: which examples a step sees follows from (seed, step) alone.

Nothing about the pipeline is saved in a checkpoint, and any number of processes sees the same
global batches: the order is fixed first (a new permutation each epoch), then each place in it has
its own random numbers for augmentation, the batches are cut next, and each process takes its part
of every batch last.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

Example = dict[str, np.ndarray]
"""image uint8 [H, W, C], and the conditions of `Dataset.conditions`, one array each."""


class DataError(RuntimeError):
    """Data that is missing, damaged or not what it should be; the message is one line."""


class Source(Protocol):
    """Examples by number."""

    def __len__(self) -> int: ...

    def example(self, index: int, rng: np.random.Generator | None = None) -> Example:
        """Example `index`, augmented by `rng`; None: as it is."""
        ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What `dataset(**options)` of each file in this folder returns.

    shape: (height, width, channels) of every image.
    conditions: what an example has besides its image, as it is written into checkpoints:
        "label": the names of the classes; the example has int32 [], -1 for none
        "attributes": the names of the attributes; int8 [K]: 1 has it, 0 has it not, -1 unknown
        "text": the longest text in bytes; int16 [L], UTF-8, -1 after its end
        "embedding": {"length": L, "width": W, "encoder": name}; float16 [L, W], a frozen text
            encoder's vectors, 0 after their end
        "hint": the number of channels of an image as a condition; float32 [H, W, channels]
    origin: one line for the log: what is read, from where.
    crop: what was done to the pictures as they are distributed; numbers compare only within one.
    """

    train: Source
    heldout: Source
    shape: tuple[int, int, int]
    conditions: Mapping[str, Any]
    origin: str = ""
    crop: str = "none"

    @property
    def classes(self) -> int | None:
        """The number of classes, None where there are no labels."""
        return len(self.conditions["label"]) if "label" in self.conditions else None


@dataclasses.dataclass(frozen=True)
class InMemory:
    """A `Source` over arrays: images uint8 [N, H, W, C], labels int32 [N]."""

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
    """This process's share of every global batch from step `start` on, without end.

    Yields {"image": uint8 [batch / processes, H, W, C], "index": int32, ...}, where `index` is the
    example's place in the global batch. `threads` read ahead, a part of a batch each.
    """
    share = batch // processes
    index = np.arange(process * share, (process + 1) * share, dtype=np.int32)
    endless = 2**62 // len(source)  # grain's own endless repeat overflows in batches of one
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(endless)
    examples = order.random_map(lambda i, rng: source.example(int(i), rng))
    parts = examples.batch(share)[start * processes + process :: processes]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    for part in parts.to_iter_dataset(options):
        yield part | {"index": index}


def share(first: int, end: int, process: int, processes: int) -> np.ndarray:
    """This process's part of the numbers from `first` to `end` - 1, of one length in all processes.

    So the last of them may have the last number several times.
    """
    length = -(-(end - first) // processes)
    start = first + process * length
    return np.minimum(np.arange(start, start + length), end - 1)


def in_order(
    source: Source, which: Sequence[int], batch: int, threads: int = 1,
    process: int = 0, processes: int = 1,
) -> Iterator[dict[str, np.ndarray]]:  # fmt: skip
    """These examples as they are, with their "index" in `which`, in batches (the last smaller).

    Of each batch this process's `share`. `threads` read ahead, a part of a batch each.
    """
    ends = [min(first + batch, len(which)) for first in range(0, len(which), batch)]
    parts = [share(i * batch, end, process, processes) for i, end in enumerate(ends)]
    places: Any = np.concatenate([np.arange(0), *parts])
    examples = grain.MapDataset.source(places).map(
        lambda i: source.example(int(which[i])) | {"index": np.array(i, np.int32)}
    )
    batches = examples.batch(-(-batch // processes), drop_remainder=False)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    yield from batches.to_iter_dataset(options)


def stacked(source: Source, which: range | None = None) -> dict[str, np.ndarray]:
    """Examples as they are, all of them if `which` is None, as one array for each name."""
    examples = [source.example(i) for i in (range(len(source)) if which is None else which)]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}
