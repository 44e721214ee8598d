"""The JPEG quality, chroma subsampling and orientation of a picture's file, for "artefacts"."""

import os
import pathlib
from typing import Any

import numpy as np
from PIL import Image, JpegImagePlugin

from vitdiff_jax.inference.tasks import TASKS
from vitdiff_jax.operators import jpeg, parsing
from vitdiff_jax.runtime import logs, paths, pictures, pillow

SAMPLING = {0: "444", 1: "422", 2: "420", -1: "unusual chroma"}
"""Of chroma, by Pillow's numbers; -1 also for grey, which has none."""


def resolved(task: str, source: Any) -> str:
    """The task "artefacts" with the quality that the file was saved with, and a line that says so.

    Any other task, one that states a quality, and the task of a file that cannot be read come back
    as they are. source: the path of the picture, a PIL image, or an array, which has no quality.
    """
    try:
        options = parsing.parse(task)
    except ValueError:  # which the task's own reader explains
        return task
    if options.pop("name") != "artefacts" or "quality" in options:
        return task
    try:
        with pictures.errors():
            name, found = _of(source)
    except (OSError, ValueError):
        return task
    if not found:
        found = parsing.parse(TASKS["artefacts"])
        del found["name"]
        logs.say(f"artefacts: {name} is no JPEG file; quality={found['quality']} is assumed")
    return "artefacts:" + ",".join(f"{key}={value}" for key, value in (found | options).items())


def _of(source: Any) -> tuple[str, dict[str, Any]]:
    """(what to call a picture, its quality and the like; empty if it is no JPEG file)."""
    if isinstance(source, str | os.PathLike):
        path = pathlib.Path(paths.local_copy(source))
        return path.name, _saved(path.name, pillow.opened(path.read_bytes()))
    if isinstance(source, Image.Image):
        return "the image", _saved("the image", source)
    return "an array", {}


def _saved(name: str, image: Image.Image) -> dict[str, Any]:
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return {}
    found = {key: np.reshape(table, (8, 8)) for key, table in image.quantization.items()}
    tables = [found[layer[3]] for layer in image.layer[:2]]  # of luma, and of chroma if there is
    quality, same = jpeg.quality_of(*tables)
    sampling = SAMPLING[JpegImagePlugin.get_sampling(image)] if len(image.layer) > 1 else "420"
    kept = sampling if sampling in ("444", "420") else "420"
    own = "" if same else ", the nearest to its own tables"
    nearest = f", for the nearest, {kept}" if kept != sampling else ""
    logs.say(f"artefacts: {name} was saved with quality={quality}{own}, {sampling}{nearest}")
    orientation = pillow.orientation_of(image)
    turned = {"orientation": orientation} if orientation in range(2, 9) else {}
    return {"quality": quality, "subsampling": kept} | turned
