"""Decode images of any format, crop and resize them as in the literature: uint8 of one size.

All arithmetic is Pillow's, so that crops of fully decoded images equal the published ones exactly.
"""

import functools
import io
import math

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

MAX_PIXELS = 2**27
"""Larger images are refused: a few kilobytes can decompress to gigabytes."""
MAX_ASPECT = 64
Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # for images inside of files: Pillow refuses twice this
UNSUPPORTED = ("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG")
"""Left out: Pillow runs Ghostscript on EPS, and cannot decode the others by itself."""
ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transpose that makes an image upright, by the value of its EXIF orientation."""


@functools.cache
def formats() -> tuple[str, ...]:
    """The supported formats, by Pillow's names."""
    Image.preinit()  # the most common ones first
    Image.init()
    return tuple(name for name in Image.ID if name not in UNSUPPORTED)


def decode(
    data: bytes, channels: int | None, upright: bool = False, min_size: int = 0
) -> Image.Image:
    """Decode an image to mode "L" (channels 1) or "RGB" (3); None: whichever of these it is.

    Supports what Pillow reads: grey, palettes, CMYK, 16 bits per sample (grey is rounded to 8 bits,
    colours keep the high 8). Alpha is composited on white; of an animation the first frame is read.
    upright: rotate as the EXIF tag says. min_size: let libjpeg decode at 1/2, 1/4 or 1/8 of the
    size while both sides keep that many pixels: much faster, nearly the same result.
    Raises ValueError or OSError for files that are not images, truncated or too large.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=formats())
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels are too many")
        if min_size:
            image.draft(None, (min_size, min_size))
        image.load()
        return _converted(rotated(image) if upright else image, channels)
    except UnidentifiedImageError as error:  # its message names an object in memory
        raise ValueError("cannot identify image: not an image, or unsupported format") from error
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # Pillow raises all kinds of errors for damaged files
        raise ValueError(f"{type(error).__name__}: {error}") from error


def rotated(image: Image.Image) -> Image.Image:
    """The image rotated as its EXIF tag says; unchanged if the tag cannot be read."""
    try:
        rotation = ROTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # see `decode`
        rotation = None
    return image if rotation is None else image.transpose(rotation)


def _converted(image: Image.Image, channels: int | None) -> Image.Image:
    """An image in any of Pillow's modes as "L" or "RGB"."""
    if image.mode.startswith("I"):  # 16 bits; convert("L") would clip them
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("grey values outside 0 to 65535")
        image = Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
    if channels is None:
        channels = 1 if image.mode in ("1", "L", "LA", "La") else 3
    if image.mode == "F":
        raise ValueError("floating-point pixels of unknown range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)  # convert copies


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
