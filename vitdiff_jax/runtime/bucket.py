"""Checkpoints in buckets that Orbax cannot write to (all but gs://), through a staging folder.

Orbax 0.12 treats s3:// as a relative path. It therefore writes to a temporary local folder, from
which complete checkpoints are uploaded to the bucket; they are downloaded on demand. The file
`last` is uploaded last and deleted first: a checkpoint without it is incomplete.
"""

import contextlib
import pathlib
import tempfile
from collections.abc import Callable

from etils import epath

from vitdiff_jax.runtime import paths


def needed(directory: epath.Path) -> bool:
    """Whether checkpoints in this directory need staging."""
    return paths.remote(directory) and not str(directory).startswith("gs://")


class Staging:
    """A local `folder` for Orbax, and the numbered checkpoints in the bucket at `home`."""

    def __init__(self, home: epath.Path, last: str):
        self.home, self.last = home, last
        self._temporary = tempfile.TemporaryDirectory(prefix="vitdiff_jax-")
        self.folder = epath.Path(self._temporary.name) / home.name
        self.folder.mkdir()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints."""
        return [step for step in self._all() if (self.home / str(step) / self.last).exists()]

    def _all(self) -> list[int]:
        with contextlib.suppress(FileNotFoundError):  # nothing written yet
            return sorted(int(a.name) for a in self.home.iterdir() if a.name.isdecimal())
        return []

    def download(self, step: int) -> None:
        """Download a checkpoint into the folder, unless it is there."""
        if not (self.folder / str(step)).exists():
            paths.download(self.home / str(step), self.folder / str(step))

    def upload(self, step: int, source: epath.Path) -> None:
        """Upload a checkpoint, whose folder may still have its temporary name."""
        names = [a.relative_to(source) for a in pathlib.Path(source).rglob("*") if a.is_file()]
        for name in sorted(names, key=lambda name: str(name) == self.last):
            paths.upload(source / name, self.home / str(step) / name.as_posix())

    def prune(self, preserved: Callable[[list[int]], set[int]]) -> None:
        """Delete incomplete checkpoints, and complete ones that `preserved` does not return."""
        for step in set(self._all()) - preserved(self.steps()):
            (self.home / str(step) / self.last).unlink(missing_ok=True)
            (self.home / str(step)).rmtree()
