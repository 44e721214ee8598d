"""The user's own pictures: read for restoration with all their bits, written back in their kind.

8 or 16 bits a sample, grey or colour, opaque or not. 16 bits are read from grey pictures of any
format, and from colours in PNG and TIFF (not from CMYK and premultiplied ones, of which the higher
8 remain). Of those Pillow unpacks the higher 8 bits alone, or the lower ones if told that the bytes
of a sample lie in the other order: we do both.
"""

import dataclasses
import io
import pathlib
import sys
from typing import Any

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from vitdiff_jax.data import transforms
from vitdiff_jax.data.files import Folder
from vitdiff_jax.data.pictures import names_of
from vitdiff_jax.data.pipeline import DataError

WIDE = ("RGB;16", "RGBX;16", "RGBA;16")
"""Pillow's names of the layouts of samples that we read twice; then comes the order of bytes."""
OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


@dataclasses.dataclass(frozen=True, eq=False)
class Photo:
    """A picture, upright, and what it takes to write another one of its kind.

    name: of its file. x: float32 [H, W, C] in [-1, 1], C is 1 or 3. depth: 8 or 16 bits a sample.
    alpha: uint8 or uint16 [H, W, 1], None where there is none; x is what lies below it.
    profile: its ICC profile, empty if none: which colours its numbers are.
    """

    name: str
    x: np.ndarray
    alpha: np.ndarray | None
    depth: int
    profile: bytes = b""


def find(path: pathlib.Path) -> list[pathlib.Path]:
    """This file, or all pictures in and below this folder, by their suffixes, sorted.

    Raises DataError where there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: there is no such picture or folder of pictures")
    try:
        return [path / name for name in names_of(Folder(path))]
    except OSError as error:
        raise DataError(f"{path}: {error}") from error


def read(path: pathlib.Path) -> Photo:
    """One picture, turned as its EXIF tag says; of an animation the first.

    CMYK and the like become RGB, palettes too. Raises DataError for what is no picture, is cut off,
    is too large (`transforms.MOST_PIXELS`), or has pixels whose range nothing says.
    """
    try:
        samples, profile = _read(Folder(path.parent).read(path.name))
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: {error}") from error
    depth = 8 * samples.dtype.itemsize
    colours = 1 if samples.shape[-1] < 3 else 3
    x = samples[..., :colours].astype(np.float32) / _half(depth) - 1
    alpha = samples[..., colours:]
    return Photo(path.name, x, alpha if alpha.shape[-1] else None, depth, profile)


def encode(photo: Photo, x: np.ndarray) -> np.ndarray:
    """Pixels x, float [H, W, 1 or 3] in [-1, 1], as the photo has them: with its bits and alpha.

    uint8 or uint16 [H, W, 1 to 4], alpha last. x may be of another size, then alpha is resized,
    bicubic. Raises ValueError for NaN and infinity.
    """
    x = np.asarray(x, np.float32)
    if not np.isfinite(x).all():
        raise ValueError(f"{photo.name}: the restored pixels are not finite numbers")
    samples = _rounded((x + 1) * _half(photo.depth), photo.depth)
    if photo.alpha is None:
        return samples
    return np.concatenate([samples, _resized(photo.alpha, *x.shape[:2])], -1)


def _half(depth: int) -> np.float32:
    """Of the largest value that a sample can have."""
    return np.float32((2**depth - 1) / 2)


def _rounded(values: np.ndarray, depth: int) -> np.ndarray:
    return np.clip(np.round(values), 0, 2**depth - 1).astype(f"uint{depth}")


def _resized(alpha: np.ndarray, height: int, width: int) -> np.ndarray:
    if alpha.shape[:2] == (height, width):
        return alpha
    image = Image.fromarray(alpha[..., 0].astype(np.float32))
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return _rounded(np.asarray(resized), 8 * alpha.dtype.itemsize)[..., None]


def _read(data: bytes) -> tuple[np.ndarray, bytes]:
    """Samples, uint8 or uint16 [H, W, 1 to 4] with alpha last, and the ICC profile."""
    plain = transforms.decode(data, None, upright=True)  # also refuses what is not to be read
    image = _open(data)
    profile = image.info.get("icc_profile") or b""
    wide = _wide(data)
    if wide is not None:
        key = image.info.get("transparency")  # one colour, or grey, that is not there
        if key is not None:
            there = (wide != np.array(key)).any(-1, keepdims=True)
            wide = np.concatenate([wide, np.where(there, 65535, 0).astype(np.uint16)], -1)
        return wide, profile
    if image.has_transparency_data:
        image.load()
        samples = np.asarray(transforms.turned(image).convert("RGBA"))
        return samples[..., [0, 3]] if plain.mode == "L" else samples, profile
    return transforms.pixels(plain), profile


def _open(data: bytes) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(data), formats=transforms.formats())


def _wide(data: bytes) -> np.ndarray | None:
    """uint16 [H, W, 1 to 4] of what has 16 bits a sample, None of what has fewer."""
    image = _open(data)
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    grey = image.mode.startswith("I")
    planes = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 and not grey
    if planes and 16 in tags.get(TiffImagePlugin.BITSPERSAMPLE, ()):
        raise ValueError("its colours lie in planes of 16 bits; save them pixel by pixel")
    layout = _layout(image)
    if layout == "LA;16B":  # four bytes a pixel, whatever they are called
        four = np.ascontiguousarray(_unpacked(data, "RGBA"))
        return four.view(">u2").astype(np.uint16)
    if layout[:-1] in WIDE:
        high = _unpacked(data, layout).astype(np.uint16)
        return high << 8 | _unpacked(data, layout[:-1] + OTHER_ORDER[layout[-1]])
    if not grey:
        return None
    image.load()
    samples = transforms.pixels(transforms.turned(image)).astype(np.uint16)
    if layout == "I;12":  # up to 4095
        samples = np.round(samples * (65535 / 4095)).astype(np.uint16)
    white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    return 65535 - samples if white_is_zero else samples


def _layout(image: ImageFile.ImageFile) -> str:
    """Pillow's name of how the samples lie in the file, or something else where it has none."""
    arguments: Any = image.tile[0].args if image.tile else None
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _unpacked(data: bytes, layout: str) -> np.ndarray:
    """uint8 [H, W, C]: the picture as if its samples lay so."""
    image = _open(data)
    for i, tile in enumerate(image.tile):
        told = (layout, *tile.args[1:]) if isinstance(tile.args, tuple) else layout
        image.tile[i] = tile._replace(args=told)
    image.load()
    return np.asarray(transforms.turned(image))
