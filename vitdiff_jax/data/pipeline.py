"""From a data set to batches: which examples a step sees follows from (seed, step) alone.

Nothing about the pipeline is saved in a checkpoint, and any number of processes sees the same
global batches: the order is fixed first (a new permutation each epoch), the batches are cut next,
and each process takes its part of every batch last.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import grain
import numpy as np


class Source(Protocol):
    """Examples by number: {"image": uint8 [H, W, C], "label": int32}, without label if none."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What `dataset(**options)` of each file in this folder returns.

    shape: (height, width, channels) of every image. class_names: None if there are no labels.
    """

    train: Source
    heldout: Source
    shape: tuple[int, int, int]
    class_names: tuple[str, ...] | None

    @property
    def classes(self) -> int | None:
        """The number of classes, None where there are no labels."""
        return None if self.class_names is None else len(self.class_names)


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
    example's place in the global batch.
    """
    share = batch // processes
    index = np.arange(process * share, (process + 1) * share, dtype=np.int32)
    endless = 2**62 // len(source)  # grain's own endless repeat overflows in batches of one
    examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat(endless)
    parts = examples.batch(share)[start * processes + process :: processes]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    for part in parts.to_iter_dataset(options):
        yield part | {"index": index}


def in_order(source: Source, batch: int, count: int) -> Iterator[dict[str, np.ndarray]]:
    """The first `count` examples in batches of exactly `batch`; an incomplete one is left out."""
    for first in range(0, count - batch + 1, batch):
        part = [source[i] for i in range(first, first + batch)]
        stacked = {name: np.stack([example[name] for example in part]) for name in part[0]}
        yield stacked | {"index": np.arange(first, first + batch, dtype=np.int32)}


def stacked(source: Source) -> dict[str, np.ndarray]:
    """All examples of a small source as arrays."""
    examples = [source[i] for i in range(len(source))]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}
