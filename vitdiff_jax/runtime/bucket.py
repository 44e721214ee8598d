"""Checkpoints in buckets that Orbax cannot write into (all but gs://), by way of a folder.

Orbax 0.12 takes s3:// for a relative path. So it works in a temporary folder of this machine, whose
checkpoints are copied into the bucket when they are whole, and fetched when one is asked for. The
file `last` goes last and is deleted first: a checkpoint without it does not count.
"""

import contextlib
import pathlib
import tempfile
from collections.abc import Callable

from etils import epath

from vitdiff_jax.runtime import paths


def needed(directory: epath.Path) -> bool:
    """Whether Orbax needs one for this directory."""
    return paths.remote(directory) and not str(directory).startswith("gs://")


class Mirror:
    """`folder`, for Orbax, and what is in the bucket at `home`: numbered checkpoints."""

    def __init__(self, home: epath.Path, last: str):
        self.home, self.last = home, last
        self._temporary = tempfile.TemporaryDirectory(prefix="vitdiff_jax-")
        self.folder = epath.Path(self._temporary.name) / home.name
        self.folder.mkdir()

    def steps(self) -> list[int]:
        """Of the whole checkpoints."""
        return [step for step in self._all() if (self.home / str(step) / self.last).exists()]

    def _all(self) -> list[int]:
        with contextlib.suppress(FileNotFoundError):  # nothing was written yet
            return sorted(int(a.name) for a in self.home.iterdir() if a.name.isdecimal())
        return []

    def fetch(self, step: int) -> None:
        """Have a checkpoint in the folder."""
        if not (self.folder / str(step)).exists():
            paths.fetch(self.home / str(step), self.folder / str(step))

    def send(self, step: int, whole: epath.Path) -> None:
        """Copy a checkpoint, which need not have its name yet, into the bucket."""
        names = [a.relative_to(whole) for a in pathlib.Path(whole).rglob("*") if a.is_file()]
        for name in sorted(names, key=lambda name: str(name) == self.last):
            paths.send(whole / name, self.home / str(step) / name.as_posix())

    def forget(self, wanted: Callable[[list[int]], set[int]]) -> None:
        """Delete those that are not wanted of all that are there, and what was cut off."""
        whole = self.steps()
        for step in set(self._all()) - wanted(whole):
            (self.home / str(step) / self.last).unlink(missing_ok=True)
            (self.home / str(step)).rmtree()
