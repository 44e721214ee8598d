"""What the processes of a run do together: each its share, then every one has everything."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vitdiff_jax.data import pipeline


def gathered(rows: Any, count: int) -> Any:
    """NumPy arrays [n, ...], n the same everywhere, of all processes in turn: the first [count].

    To the bit, of whatever type: they travel as bytes, since JAX would make float32 of float64.
    """
    if jax.process_count() == 1:
        return jax.tree.map(lambda a: a[:count], rows)

    def of_all(a):
        flat = np.ascontiguousarray(a).reshape(len(a), -1).view(np.uint8)
        found = np.asarray(multihost_utils.process_allgather(flat, tiled=True))
        return found.view(a.dtype).reshape(-1, *a.shape[1:])[:count]

    return jax.tree.map(of_all, rows)


def objects(mine: Any) -> list[Any]:
    """What each process has, as JSON knows it, in their order."""
    text = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    longest = int(gathered(np.array([len(text)]), jax.process_count()).max())
    padded = np.pad(text, (0, longest - len(text)), constant_values=ord(" "))
    return [json.loads(row.tobytes()) for row in gathered(padded[None], jax.process_count())]


def read(
    source: pipeline.Source, which: Sequence[int], batch: int, threads: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """`pipeline.in_order`, of which each process reads its share: decoding is what takes long."""
    parts = pipeline.in_order(
        source, which, batch, threads, jax.process_index(), jax.process_count()
    )
    for first, part in zip(range(0, len(which), batch), parts):
        yield gathered(part, min(batch, len(which) - first))
