"""Pictures of any format to uint8 pixels of one size, as the literature crops and resizes them.

Everything is Pillow's own arithmetic, so that crops of fully decoded pictures are the published
ones to the bit.
"""

import functools
import io
import math

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

MOST_PIXELS = 2**27
"""Larger pictures are refused: a few kilobytes can unpack to gigabytes."""
MOST_ASPECT = 64
Image.MAX_IMAGE_PIXELS = MOST_PIXELS  # for pictures inside of files: Pillow refuses twice this
NO_PICTURES = ("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG")
"""Left out: Pillow runs Ghostscript on EPS, and cannot decode the others by itself."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright whose EXIF tag "orientation" has this value."""


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that are read, by Pillow's names."""
    Image.preinit()  # the most usual ones first
    Image.init()
    return tuple(name for name in Image.ID if name not in NO_PICTURES)


def decode(data: bytes, channels: int | None, upright: bool = False, least: int = 0) -> Image.Image:
    """An encoded picture as mode "L" (channels 1) or "RGB" (3); None: as it is, grey or colour.

    Takes what Pillow reads: grey, palettes, CMYK, 16 bits per sample (grey rounded to 8, of colours
    the higher 8). Transparent pixels are laid on white; of an animation it is the first picture.
    upright: turn a photograph as its EXIF tag says. least: let libjpeg decode at a half, a quarter
    or an eighth of the size, while both sides keep so many pixels: much faster, nearly the same.
    Raises ValueError or OSError for what is no picture, is cut off, or is too large.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=formats())
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels are too many")
        if least:
            image.draft(None, (least, least))
        image.load()
        return _plain(turned(image) if upright else image, channels)
    except UnidentifiedImageError as error:  # which names an object in memory
        raise ValueError("cannot identify image: none, or in a format not read") from error
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # of damaged files Pillow's parts raise whatever they run into
        raise ValueError(f"{type(error).__name__}: {error}") from error


def turned(image: Image.Image) -> Image.Image:
    """Turned as the EXIF tag says, if it can be read: the pixels are good without it."""
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # see above
        turn = None
    return image if turn is None else image.transpose(turn)


def _plain(image: Image.Image, channels: int | None) -> Image.Image:
    """Any mode of Pillow's as "L" or "RGB"."""
    if image.mode.startswith("I"):  # 16 bits; convert("L") would clip them
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("grey values outside 0 to 65535")
        image = Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
    if channels is None:
        channels = 1 if image.mode in ("1", "L", "LA", "La") else 3
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range nothing says")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)  # convert copies


def centre_crop(image: Image.Image, size: int) -> np.ndarray:
    """ADM's centre crop (arXiv:2105.05233, its released code): uint8 [size, size, C].

    Halves by 2x2 averages while the shorter side stays at least twice `size`, then antialiased
    bicubic until it is `size`, then the middle. Also JiT's and DiT's; FID references are made so.
    """
    if max(image.size) > MOST_ASPECT * min(image.size):
        raise ValueError(f"{image.width}x{image.height} pixels are too narrow to crop")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return pixels(image.crop((left, top, left + size, top + size)))


def random_crop(
    image: Image.Image, size: int, rng: np.random.Generator, least_area: float
) -> np.ndarray:
    """A random part of the image, antialiased bilinear to uint8 [size, size, C].

    Inception's crop (arXiv:1409.4842) as ResNets are trained with: a share of the area from
    [least_area, 1], sides in a ratio from [3/4, 4/3]; the middle square if ten tries do not fit.
    """
    width, height = image.size
    side = min(width, height)
    box = ((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2)
    for _ in range(10):
        area = width * height * rng.uniform(least_area, 1)
        ratio = math.exp(rng.uniform(-math.log(4 / 3), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            box = (left, top, left + w, top + h)
            break
    return fixed_crop(image, size, box)


def fixed_crop(image: Image.Image, size: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """The part (left, top, right, bottom), antialiased bilinear to uint8 [size, size, C]."""
    return pixels(image.crop(box).resize((size, size), Image.Resampling.BILINEAR))


def pixels(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, C], also where C is 1."""
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]
