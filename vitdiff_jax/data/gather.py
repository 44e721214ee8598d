"""Distribute host work over the processes of a run and gather the results on all of them."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vitdiff_jax.data import pipeline


def allgather(rows: Any, count: int) -> Any:
    """The NumPy arrays [n, ...] of all processes, n the same on each, concatenated: [count, ...].

    Exact for every dtype: they are sent as bytes, since JAX would convert float64 to float32.
    """
    if jax.process_count() == 1:
        return jax.tree.map(lambda a: a[:count], rows)

    def of_all(a):
        flat = np.ascontiguousarray(a).reshape(len(a), -1).view(np.uint8)
        found = np.asarray(multihost_utils.process_allgather(flat, tiled=True))
        return found.view(a.dtype).reshape(-1, *a.shape[1:])[:count]

    return jax.tree.map(of_all, rows)


def allgather_objects(mine: Any) -> list[Any]:
    """The JSON-serialisable objects of all processes, in order."""
    text = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    longest = int(allgather(np.array([len(text)]), jax.process_count()).max())
    padded = np.pad(text, (0, longest - len(text)), constant_values=ord(" "))
    return [json.loads(row.tobytes()) for row in allgather(padded[None], jax.process_count())]


def read(
    source: pipeline.Source, which: Sequence[int], batch: int, threads: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """`pipeline.ordered_batches`, with the decoding distributed over the processes."""
    parts = pipeline.ordered_batches(
        source, which, batch, threads, jax.process_index(), jax.process_count()
    )
    for first, part in zip(range(0, len(which), batch), parts):
        yield allgather(part, min(batch, len(which) - first))
