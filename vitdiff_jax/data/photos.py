"""The user's own images for restoration: read at full bit depth, written in the same format.

8 or 16 bits per sample, grey or colour, with or without alpha. 16 bits are read from grey images in
any format and from colour images in PNG and TIFF; of CMYK and premultiplied ones the high 8 bits.
Pillow unpacks only the high bytes of 16-bit colour samples, or the low bytes if given the opposite
byte order: both are read here.
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
from vitdiff_jax.data.image_files import image_names
from vitdiff_jax.data.pipeline import DataError

WIDE = ("RGB;16", "RGBX;16", "RGBA;16")
"""Pillow's raw modes that are read twice, without the letter for the byte order."""
OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


@dataclasses.dataclass(frozen=True, eq=False)
class Photo:
    """An upright image, and what is needed to write another one in the same format.

    name: of the file. x: float32 [H, W, C] in [-1, 1], C is 1 or 3, not multiplied by alpha.
    alpha: uint8 or uint16 [H, W, 1], or None. depth: 8 or 16 bits per sample.
    profile: the ICC profile, empty if there is none.
    """

    name: str
    x: np.ndarray
    alpha: np.ndarray | None
    depth: int
    profile: bytes = b""


def find(path: pathlib.Path) -> list[pathlib.Path]:
    """This file, or all image files in this folder and its subfolders, sorted.

    Raises DataError where there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such image or folder of images")
    try:
        return [path / name for name in image_names(Folder(path))]
    except OSError as error:
        raise DataError(f"{path}: {error}") from error


def read(path: pathlib.Path) -> Photo:
    """One image, rotated as its EXIF tag says; the first frame of an animation.

    CMYK, palettes and the like are converted to RGB. Raises DataError for files that are not
    images, truncated, too large (`transforms.MAX_PIXELS`), or of unknown value range.
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
    """Pixels x, float [H, W, 1 or 3] in [-1, 1], with the bit depth and alpha of the photo.

    Returns uint8 or uint16 [H, W, 1 to 4], alpha last. If x has another size, alpha is resized
    (bicubic). Raises ValueError for non-finite values.
    """
    x = np.asarray(x, np.float32)
    if not np.isfinite(x).all():
        raise ValueError(f"{photo.name}: the restored pixels are not finite")
    samples = _rounded((x + 1) * _half(photo.depth), photo.depth)
    if photo.alpha is None:
        return samples
    return np.concatenate([samples, _resized(photo.alpha, *x.shape[:2])], -1)


def _half(depth: int) -> np.float32:
    """Half of the largest value of a sample."""
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
    plain = transforms.decode(data, None, upright=True)  # also refuses unsupported files
    image = _open(data)
    profile = image.info.get("icc_profile") or b""
    wide = _wide(data)
    if wide is not None:
        key = image.info.get("transparency")  # one transparent colour or grey level
        if key is not None:
            opaque = (wide != np.array(key)).any(-1, keepdims=True)
            wide = np.concatenate([wide, np.where(opaque, 65535, 0).astype(np.uint16)], -1)
        return wide, profile
    if image.has_transparency_data:
        image.load()
        samples = np.asarray(transforms.rotated(image).convert("RGBA"))
        return samples[..., [0, 3]] if plain.mode == "L" else samples, profile
    return transforms.pixels(plain), profile


def _open(data: bytes) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(data), formats=transforms.formats())


def _wide(data: bytes) -> np.ndarray | None:
    """uint16 [H, W, 1 to 4] of images with 16 bits per sample, None for fewer bits."""
    image = _open(data)
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    grey = image.mode.startswith("I")
    planes = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 and not grey
    if planes and 16 in tags.get(TiffImagePlugin.BITSPERSAMPLE, ()):
        raise ValueError("16-bit planar TIFF is not supported; save it with interleaved channels")
    layout = _layout(image)
    if layout == "LA;16B":  # four bytes per pixel, unpacked as such
        four = np.ascontiguousarray(_unpacked(data, "RGBA"))
        return four.view(">u2").astype(np.uint16)
    if layout[:-1] in WIDE:
        high = _unpacked(data, layout).astype(np.uint16)
        return high << 8 | _unpacked(data, layout[:-1] + OTHER_ORDER[layout[-1]])
    if not grey:
        return None
    image.load()
    samples = transforms.pixels(transforms.rotated(image)).astype(np.uint16)
    if layout == "I;12":  # up to 4095
        samples = np.round(samples * (65535 / 4095)).astype(np.uint16)
    white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    return 65535 - samples if white_is_zero else samples


def _layout(image: ImageFile.ImageFile) -> str:
    """Pillow's raw mode of the file, or another string where there is none."""
    arguments: Any = image.tile[0].args if image.tile else None
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _unpacked(data: bytes, layout: str) -> np.ndarray:
    """uint8 [H, W, C]: the image decoded with this raw mode."""
    image = _open(data)
    for i, tile in enumerate(image.tile):
        args = (layout, *tile.args[1:]) if isinstance(tile.args, tuple) else layout
        image.tile[i] = tile._replace(args=args)
    image.load()
    return np.asarray(transforms.rotated(image))
