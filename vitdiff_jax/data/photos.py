"""The user's own images for restoration: read at full bit depth, written in the same format."""

import dataclasses
import pathlib

import numpy as np
from PIL import Image

from vitdiff_jax.data import listing
from vitdiff_jax.data.files import Folder
from vitdiff_jax.data.image_files import image_names
from vitdiff_jax.data.pipeline import DataError
from vitdiff_jax.runtime import pictures


@dataclasses.dataclass(frozen=True, eq=False)
class Photo:
    """An upright image, and what is needed to write another one in the same format.

    name: of the file. colours: uint8 or uint16 [H, W, 1 or 3], not multiplied by alpha. alpha: of
    the same type [H, W, 1], or None. profile: the ICC profile, empty if there is none. count: of
    the pictures in the file, of which this is the first. inks: see `pictures.Picture`.
    """

    name: str
    colours: np.ndarray
    alpha: np.ndarray | None
    profile: bytes = b""
    count: int = 1
    inks: bool = False


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
    """One image, as `pictures.read` reads it. Raises DataError for what cannot be read."""
    try:
        data = Folder(path.parent).read(path.name)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        found, count = pictures.read(data), pictures.count(data)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: {listing.why(data, str(error))}") from error
    return Photo(path.name, found.colours, found.alpha, found.profile, count, found.inks)


def encode(photo: Photo, x: np.ndarray) -> np.ndarray:
    """Pixels x, float [H, W, 1 or 3] in [-1, 1], with the bit depth and alpha of the photo.

    Returns uint8 or uint16 [H, W, 1 to 4], alpha last. If x has another size, alpha is resized
    (bicubic). Raises ValueError for non-finite values.
    """
    x, dtype = np.asarray(x, np.float32), photo.colours.dtype
    if not np.isfinite(x).all():
        raise ValueError(f"{photo.name}: the restored pixels are not finite")
    samples = _rounded((x + 1) * np.float32(np.iinfo(dtype).max / 2), dtype)
    if photo.alpha is None:
        return samples
    return np.concatenate([samples, _resized(photo.alpha, *x.shape[:2])], -1)


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.clip(np.round(values), 0, np.iinfo(dtype).max).astype(dtype)


def _resized(alpha: np.ndarray, height: int, width: int) -> np.ndarray:
    if alpha.shape[:2] == (height, width):
        return alpha
    image = Image.fromarray(alpha[..., 0].astype(np.float32))
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return _rounded(np.asarray(resized), alpha.dtype)[..., None]
