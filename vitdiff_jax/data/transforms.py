"""Crop and resize images as in the literature: uint8 of one size.

All arithmetic is Pillow's, so that crops of fully decoded images equal the published ones exactly.
"""

import math

import numpy as np
from PIL import Image

from vitdiff_jax.runtime import pictures, pillow

MAX_ASPECT = 64


def decode(
    data: bytes, channels: int | None, upright: bool = True, min_size: int = 0
) -> Image.Image:
    """A picture as `pictures.read` reads it, on white, as "L" (channels 1) or "RGB" (3).

    channels None: whichever of these it is. upright=False: as stored, which is how the published
    preprocessing of ImageNet, COCO and CelebA takes pictures. min_size: see `pictures.read`.
    Raises ValueError or OSError for what cannot be read.
    """
    if data.startswith(b"\xff\xd8"):  # JPEG: most photographs are spared the copies of `read`
        with pictures.errors():
            image = pillow.opened(data)
            if min_size:
                image.draft(None, (min_size, min_size))
            image.load()
            turned = upright and pillow.orientation_of(image) != 1
            if image.mode in ("L", "RGB") and not turned:
                mode = {None: image.mode, 1: "L", 3: "RGB"}[channels]
                return image if image.mode == mode else image.convert(mode)
    found = pictures.read(data, upright, min_size).on_white(channels)
    return Image.fromarray(found[..., 0] if found.shape[-1] == 1 else found)


def centre_crop(image: Image.Image, size: int) -> np.ndarray:
    """ADM's centre crop (arXiv:2105.05233, its released code): uint8 [size, size, C].

    Box downsampling by 2 while the shorter side is at least twice `size`, then antialiased bicubic
    resizing to `size`, then the centre. Also used by JiT and DiT, and for FID reference statistics.
    """
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ValueError(f"{image.width}x{image.height} pixels: the aspect ratio is too extreme")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return pixels(image.crop((left, top, left + size, top + size)))


def random_crop(
    image: Image.Image, size: int, rng: np.random.Generator, min_area: float
) -> np.ndarray:
    """A random resized crop, antialiased bilinear: uint8 [size, size, C].

    Inception's crop (arXiv:1409.4842), as used to train ResNets: a fraction of the area in
    [min_area, 1], an aspect ratio in [3/4, 4/3]; the centre square if ten attempts do not fit.
    """
    width, height = image.size
    side = min(width, height)
    box = ((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2)
    for _ in range(10):
        area = width * height * rng.uniform(min_area, 1)
        ratio = math.exp(rng.uniform(-math.log(4 / 3), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            box = (left, top, left + w, top + h)
            break
    return fixed_crop(image, size, box)


def fixed_crop(image: Image.Image, size: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """The box (left, top, right, bottom), resized antialiased bilinear: uint8 [size, size, C]."""
    return pixels(image.crop(box).resize((size, size), Image.Resampling.BILINEAR))


def pixels(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, C], also for C = 1."""
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]
