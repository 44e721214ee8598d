"""The user's images for `--mode=restore`, and the names of the files that each becomes."""

import collections
import os
import pathlib
import re
from collections.abc import Sequence

from etils import epath

from vitdiff_jax.data import photos
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import provenance, tasks
from vitdiff_jax.runtime import paths

MAX_NAME = 255
"""Bytes of a file's name."""


def find(given: pathlib.Path, workdir: epath.Path) -> list[pathlib.Path]:
    """The images to restore, which must not be those restored before."""
    if not paths.remote(workdir):
        run, place = pathlib.Path(workdir).resolve(), given.resolve()
        inside = run in place.parents
        if inside and re.match(r"restored(-\w+)?$", place.relative_to(run).parts[0]):
            raise ConfigError(f"--input: {given} is in the output folder; copy it to another place")
    return photos.find(given)


def digest(path: pathlib.Path) -> str:
    """Of the contents; "" for a file that cannot be read, whose error comes with its turn."""
    try:
        return provenance.digest_of_bytes(path.read_bytes())
    except OSError:
        return ""


def digests_of_task(task: str | None) -> list[str]:
    """Of the files that a task names."""
    return [digest(pathlib.Path(paths.local_copy(path))) for path in tasks.files_of(task)]


def endings(n: int, mask: bool = False) -> list[str]:
    """Of the names of the files of an image with n samples; mask: one was looked for."""
    several = ["-uncertainty", *(f"-{i + 1}" for i in range(n))] if n > 1 else []
    return ["", "-beside", *(["-mask"] if mask else []), *several]


def too_long(stem: str, n: int) -> str | None:
    """The longest name of an image's files with n samples, if no file can have it."""
    name = max((f"{stem}{ending}.png" for ending in endings(n)), key=len)
    return name if len(os.fsencode(name)) > MAX_NAME else None


def stems(
    found: list[pathlib.Path], given: pathlib.Path, ends: Sequence[str]
) -> dict[pathlib.Path, pathlib.PurePath]:
    """The output path of each image, without suffix.

    Those that would share a file keep their suffix: a.png and a.jpg, or a.png and a-1.png where
    there are samples a-1, a-2 ...
    """
    names = {path: path.relative_to(given) if path != given else path.name for path in found}
    names = {path: pathlib.PurePath(name) for path, name in names.items()}
    chosen = {path: name.with_suffix("") for path, name in names.items()}
    while True:
        counts = collections.Counter(
            f"{stem}{end}".casefold() for stem in chosen.values() for end in ends
        )
        shared = [
            p for p, s in chosen.items() if any(counts[f"{s}{e}".casefold()] > 1 for e in ends)
        ]
        changed = {path: names[path] for path in shared if chosen[path] != names[path]}
        if not changed:
            break
        chosen |= changed
    exact = collections.Counter(f"{stem}{end}" for stem in chosen.values() for end in ends)
    for path in shared:
        if any(exact[f"{chosen[path]}{end}"] > 1 for end in ends):
            raise ConfigError(
                f"--input: results of {path} and of another image would have one name"
            )
    return chosen
