"""What a mask marks: the rules by which a file or an array says which pixels are missing.

A picture with a transparent pixel is a layer: what is painted (alpha above one half) is missing,
whatever its colour. Otherwise white is missing, luminance above one half. Two values 0 and 1, or 0
and 255, are no and yes in numbers of any size, and floats lie in [0, 1]. What could be read in two
ways is refused, and so is a mask that marks nothing or everything.
"""

import os
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from vitdiff_jax.runtime import pictures
from vitdiff_jax.runtime.pictures import Picture

PAINTS, GREY_PAINTS = 256, 16
"""Colours of a painted layer, and grey levels of one without colours; a picture has more."""
LABELS = 20
"""The classes of a map of labels, in which 255 is a border (VOC)."""
WANTED = "bool, 0 and 1, 0 and 255, or floats in [0, 1]; 1 where pixels are missing"


def of(mask: Any) -> np.ndarray:
    """bool [H, W], True where pixels are missing.

    mask: the path of a picture, a PIL image, or an array (or nested lists) [H, W] or [H, W, 1 to
    4], alpha last. Raises ValueError for what is ambiguous, unreadable, or marks no or all pixels.
    """
    name = ""
    if np.ma.is_masked(mask):
        raise ValueError("a masked array; give what it masks, np.ma.getmask(mask), or its data")
    if type(mask) is Image.Image and mask.mode == "I":  # whole numbers, which Pillow has as floats
        mask = np.asarray(mask)
    if isinstance(mask, str | os.PathLike):
        name = f"{mask}: "
        try:
            data = pathlib.Path(mask).read_bytes()
            picture, count = pictures.read(data, floats=True), pictures.count(data)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"{name}not a readable image: {reason}") from error
    else:
        try:
            given = isinstance(mask, Image.Image)
            count = pictures.count_of(mask) if given else 1
            picture = pictures.of_image(mask) if given else _of_array(mask)
        except (OSError, TypeError, RuntimeError) as error:  # truncated; a tensor on a GPU
            raise ValueError(" ".join(str(error).split())) from error
    try:
        if count > 1:
            raise ValueError(f"holds {count} frames or pages; give the one that is the mask")
        found = _painted(picture)
        if not found.any():
            raise ValueError("marks no pixel as missing: paint them, or make them white on black")
        if found.all():
            raise ValueError(
                "marks every pixel as missing, so that nothing of the picture would be kept; sample"
                " new pictures with --mode=sample"
            )
    except ValueError as error:
        raise ValueError(f"{name}{error}") from error
    return found


def fitted(missing: np.ndarray, shape: tuple[int, ...], what: str = "the image") -> np.ndarray:
    """The mask [H, W] itself, if that is the size of an image [H, W, ...]; else ValueError."""
    if missing.shape == tuple(shape[:2]):
        return missing
    turned = "; one of them is turned" if missing.shape[::-1] == tuple(shape[:2]) else ""
    raise ValueError(
        f"the mask has {missing.shape[1]}x{missing.shape[0]} pixels, {what}"
        f" {shape[1]}x{shape[0]}{turned}"
    )


def _of_array(mask: Any) -> Picture:
    """The numbers of an array as a picture of 1 to 16 bits, or of floats."""
    try:
        array = np.asarray(mask)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"not an array: {error}") from error
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or not array.size or array.shape[2] > 4:
        raise ValueError(f"of shape {array.shape}, not [height, width]")
    if array.shape[2] == 3 and (array != array[..., :1]).any():
        raise ValueError("has three channels that differ; give one")
    if array.dtype.kind == "b":
        return Picture(array.astype(np.uint8) * 255, 1)
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        return Picture(array.astype(np.float32))
    if array.dtype.kind not in "iu":
        raise ValueError(f"of type {array.dtype}; give {WANTED}")
    if array.dtype in (np.uint8, np.uint16):
        return Picture(array, 8 * array.dtype.itemsize)
    values = set(np.unique(array).tolist())
    if not (values <= {0, 1} or values <= {0, 255}):
        raise ValueError(f"{_described(array)}, of type {array.dtype}; give {WANTED}")
    return Picture(array.astype(np.uint8))


def _painted(picture: Picture) -> np.ndarray:
    """The rules, see above."""
    alpha, colours = picture.alpha, picture.colours
    if colours.dtype.kind == "f":
        if alpha is not None or not (np.abs(colours - 0.5) <= 0.5 + 1e-5).all():
            raise ValueError(f"{_described(picture.samples)}; give {WANTED}")
        return picture.luminance() > 0.5
    most = np.iinfo(colours.dtype).max
    if alpha is not None and alpha.min() < most:
        painted = alpha[..., 0] > most / 2
        _check_layer(colours[painted], most)
        return painted
    one = round(most / (2**picture.bits - 1))  # in the file's own numbers
    values = set(np.unique(colours).tolist())
    grey = (colours == colours[..., :1]).all()
    if grey and (values <= {0, one} or values <= {0, 255}):
        return colours[..., 0] > 0
    if max(values) <= most / 2:
        raise ValueError(f"{_described(colours)} of {most}, which is all dark; give {WANTED}")
    dark = max(values - {most}, default=0)
    if grey and most in values and 0 < dark <= LABELS:
        raise ValueError(
            f"has only {most} and values up to {dark}, as a map of labels with borders has; give"
            f" {WANTED}; if it is a mask, set values below {most // 2 + 1} to 0"
        )
    return picture.luminance() > most / 2


def _check_layer(paint: np.ndarray, most: int) -> None:
    """Refuse what is no painted layer; paint: the colours [N, C] of all opaque pixels."""
    kinds = np.unique(paint.astype(np.int64) @ (65536 ** np.arange(paint.shape[1])))
    coloured = (paint != paint[:, :1]).any()
    limit = min(PAINTS, len(paint) // 4) if coloured else 0  # a small picture has fewer
    if len(kinds) > max(limit, GREY_PAINTS):
        raise ValueError(
            "is a picture with transparent parts, which may mean those or the others; paint on an"
            " empty layer, or give white on black"
        )
    if set(np.unique(paint).tolist()) == {0, most} and (paint == paint[:, :1]).all():
        raise ValueError("is black and white with transparent parts; flatten it, or give a layer")


def _described(array: np.ndarray) -> str:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return "has values that are not finite"
    return f"has values from {array.min():g} to {array.max():g}"
