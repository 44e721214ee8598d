"""Marks: short digests by which what was kept is known to be of the same data.

A mark follows from content: names, sizes, and a SHA-256 over a sample of the bytes of each file; of
single files such as weights, over all bytes. It is the same wherever the data lie and whenever they
were copied. Whatever is kept and used again (caches, latents, embeddings, statistics) has the mark
of what it was made from, and is made anew, or refused, where that differs.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from vitdiff_jax.data.pipeline import Source

WHOLE, WINDOW, WINDOWS = 2**24, 2**16, 16
"""Files of up to this many bytes are read whole; of larger ones so many windows of so many bytes,
evenly from start to end.
"""
EXAMPLES = 8
"""Examples that stand for a source of unknown files."""


def digest(items: Iterable[Any]) -> str:
    """The mark of JSON-serialisable items, in their order."""
    return hashlib.sha256(json.dumps(list(items)).encode()).hexdigest()[:16]


def of_bytes(data: bytes) -> str:
    """The mark of a file with these bytes, by a sample of them."""
    return _of_sample(len(data), lambda start, end: data[start:end])


def of_sample(path: pathlib.Path) -> str:
    """`of_bytes` of a file, of which only the sample is read."""
    with path.open("rb") as file:

        def read(start, end):
            file.seek(start)
            return file.read(end - start)

        return _of_sample(file.seek(0, 2), read)


def _of_sample(size: int, read: Callable[[int, int], bytes]) -> str:
    found = hashlib.sha256(b"%d " % size)
    if size <= WHOLE:
        found.update(read(0, size))
    else:
        for i in range(WINDOWS):
            start = i * (size - WINDOW) // (WINDOWS - 1)
            found.update(read(start, start + WINDOW))
    return found.hexdigest()[:16]


def of_file(path: pathlib.Path) -> str:
    """The mark of a single file, by all of its bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def of_folder(folder: pathlib.Path, pattern: str = "*") -> str:
    """The mark of the files of a folder whose names match the pattern, by samples."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    return digest([path.name, of_sample(path)] for path in files)


def of_source(source: Source) -> str:
    """The mark of a source: its own, or by the content of a few examples, without augmentation."""
    known = getattr(source, "mark", None)
    if known is not None:
        return known(range(len(source)))
    which = range(0, len(source), max(1, len(source) // EXAMPLES))
    examples = (source.example(i) for i in which)
    contents = (
        [
            [name, array.shape, hashlib.sha256(array.tobytes()).hexdigest()]
            for name, array in e.items()
        ]
        for e in examples
    )
    return digest([len(source), *contents])
