"""Pictures and noise levels from Python: what their numbers mean, or why they are refused.

A contradiction stops; a doubt is one line on the terminal.
"""

import os
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from vitdiff_jax.data import photos
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import numbers
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.runtime import logs, paths, pictures, pillow

MAX_NOISE = 2.0
"""The largest noise std that is accepted, in units of [-1, 1]: the whole range of values."""
TAIL = 6
"""Standard deviations that noise may reach: one in 500 million normal numbers exceeds it."""
OVERSHOOT = 0.5
"""How far sharpening or bicubic resizing may leave [-1, 1]."""


def picture(image: Any, noise_std: float | None = None) -> np.ndarray:
    """A picture as float32 [H, W, 1 or 3] in [-1, 1], or beyond it by its noise.

    image: uint8, uint16 or float in [-1, 1], [H, W] or [H, W, 1 or 3]; a PIL image; or the path of
    a file. noise_std: of the noise in it; None: unknown. Raises ConfigError for what is ambiguous.
    """
    if isinstance(image, str | os.PathLike):
        found = photos.read(pathlib.Path(paths.local_copy(image)))
        _tell(found, found.count)
        return floats(found.colours)
    if isinstance(image, Image.Image):
        try:
            opened = pictures.of_image(image)
        except (OSError, ValueError) as error:
            raise ConfigError(f"image: {error}") from error
        _tell(opened, pictures.count_of(image))
        if pillow.orientation_of(image) in range(2, 9):
            logs.say("image: turned upright by its EXIF tag; a mask array must be upright too")
        return floats(opened.colours, noise_std=noise_std)
    try:
        x = np.asarray(image)
    except (ValueError, TypeError) as error:  # rows of different lengths, a tensor on a GPU
        raise ConfigError(f"image: not an array: {error}") from error
    if np.ma.is_masked(image):
        raise ConfigError("image: a masked array; give its pixels, and mask=np.ma.getmask(image)")
    x = x[..., None] if x.ndim == 2 else x
    if x.ndim != 3 or x.shape[2] not in (1, 3) or not x.size:
        hint = ""
        if x.ndim == 3 and x.shape[2] in (2, 4):
            hint = "; leave out alpha, which is not restored: image[..., :-1]"
        elif x.ndim == 3 and x.shape[0] in (1, 3):
            hint = "; channels come last: np.moveaxis(image, 0, -1)"
        elif x.ndim == 4:
            hint = "; one picture at a time"
        shape = np.shape(image)
        raise ConfigError(f"image: of shape {shape}, not [height, width, 1 or 3]{hint}")
    return floats(x, noise_std=noise_std)


def floats(x: np.ndarray, key: str = "image", noise_std: float | None = None) -> np.ndarray:
    """Pixels as float32 in [-1, 1], by their type: uint8, uint16, or floats.

    key: the argument that holds them, for errors. noise_std: see `picture`.
    """
    if x.dtype == np.uint8:
        return np.asarray(image_lib.from_uint8(x))
    if x.dtype.kind == "u" and x.dtype.itemsize == 2:  # in any byte order
        if 0 < x.max() < 256:
            logs.say(
                f"warning: {key}: uint16 up to {x.max()} of 65535 is nearly black; 8 bits are uint8"
            )
        return x.astype(np.float32) / np.float32(32767.5) - 1
    if x.dtype.kind != "f" and x.dtype.name != "bfloat16":
        raise ConfigError(
            f"{key}: of type {x.dtype}; pass uint8 (0 to 255), uint16 (0 to 65535) or floats in"
            " [-1, 1]"
        )
    x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise ConfigError(f"{key}: has values that are not finite")
    _check_range(x, key, noise_std)
    return x


def _check_range(x: np.ndarray, key: str, noise_std: float | None) -> None:
    """Refuse floats that are not in [-1, 1] plus noise; say so where they may not be."""
    low, high = float(x.min()), float(x.max())
    span = f"has values from {low:.4g} to {high:.4g}"
    reach = 1 + OVERSHOOT + TAIL * (MAX_NOISE if noise_std is None else noise_std)
    if max(-low, high) > reach or (low >= 0 and high > MAX_NOISE):
        noise = "" if noise_std is None else f" with noise of {noise_std:g}"
        raise ConfigError(
            f"{key}: {span}, which does not fit [-1, 1]{noise}; scale it, as from 0..255 by"
            " x / 127.5 - 1"
        )
    if low >= 0 and high <= 1:
        raise ConfigError(
            f"{key}: {span}: [0, 1] is scaled to [-1, 1] by 2 * x - 1; a picture that is so bright"
            " in [-1, 1] goes as uint16, by np.uint16(np.round((x + 1) * 32767.5))"
        )
    if noise_std is None and max(-low, high) > 1 + OVERSHOOT:
        logs.say(
            f"warning: {key}: {span}; what leaves [-1, 1] is taken for noise, whose level noise_std"
            " states"
        )
    if np.quantile(x, 0.01) > -min(max(2.33 * (noise_std or 0), 0.25), 0.5):
        logs.say(
            f"warning: {key}: {span} and hardly any is dark; if that is [0, 1] with noise, scale it"
            " to [-1, 1] by 2 * x - 1"
        )


def check_noise(noise_std: Any, key: str = "noise_std") -> float | None:
    """It as a plain number; ConfigError unless None or in [0, 2]. key: its name for errors."""
    if noise_std is None:
        return None
    try:
        found = numbers.real(key, noise_std)
    except ConfigError:
        found = -1.0
    if found < 0:
        raise ConfigError(f"{key}: {noise_std!r} is not a standard deviation, a number from 0 on")
    if found > MAX_NOISE:
        raise ConfigError(
            f"{key}: {found:g} is more than the range of pixels, which is [-1, 1];"
            f" {found:g} of 255 is {found / 127.5:.3g}"
        )
    return found


def _tell(found: photos.Photo | pictures.Picture, count: int) -> None:
    alpha = found.alpha
    if found.inks:
        logs.say("warning: image: CMYK, converted to RGB as ideal inks, without a profile")
    if count > 1:
        logs.say(f"warning: image: the first of {count} frames or pages, the others are left out")
    if alpha is not None and alpha.min() < np.iinfo(alpha.dtype).max:
        logs.say("warning: image: is partly transparent; its colours are restored without alpha")
