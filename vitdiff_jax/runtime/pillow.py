"""Picture files through Pillow, with all of their bits: it unpacks 8 of the 16 of colours."""

import functools
import io
import struct

import numpy as np
from PIL import ExifTags, Image, ImageFile, PpmImagePlugin

from vitdiff_jax.runtime.tiff import Raw

MAX_PIXELS = 2**27
"""Larger images are refused: a few kilobytes can decompress to gigabytes."""
Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # for images inside of files: Pillow refuses twice this
UNSUPPORTED = ("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "FITS", "MCIDAS", "SPIDER", "SGI16")
"""Left out: Pillow runs Ghostscript on EPS, cannot decode the next five by itself, and the others
hold measurements without a range for black and white.
"""
PSD_BANDS = {0: 1, 1: 1, 2: 1, 3: 3, 4: 4, 7: 1, 8: 1, 9: 3}
"""Of Photoshop's colour modes, without alpha."""
PSD_VERSION = b"8BIM" + struct.pack(">HH", 1057, 0)
"""The start of the resource that says whether the layers are stored as one picture too."""
GREY = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes of grey pictures."""


@functools.cache
def formats() -> tuple[str, ...]:
    """The supported formats, by Pillow's names."""
    Image.preinit()  # the most common ones first
    Image.init()
    return tuple(name for name in Image.ID if name not in UNSUPPORTED)


def check_size(width: int, height: int) -> None:
    """Raise ValueError above MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels are too many")


def opened(data: bytes) -> ImageFile.ImageFile:
    """A file as Pillow opens it, nothing decoded. Raises ValueError if it is too large."""
    image = Image.open(io.BytesIO(data), formats=formats())
    check_size(image.width, image.height)
    return image


def read(data: bytes, min_size: int) -> Raw:
    """The samples as Pillow decodes them; where it would lose bits, by a detour."""
    image = opened(data)
    if image.format == "PNG" and data[24] == 16 and image.mode in ("RGB", "RGBA", "LA"):
        return _wide_png(data, image)
    if image.format == "PPM" and image.mode == "RGB" and _white(image) > 255:
        return _wide_ppm(data, image)
    if image.format == "SGI" and image.tile[0].codec_name == "SGI16":
        raise ValueError("SGI of 16 bits is not supported; save it as PNG or TIFF")
    if image.format == "JPEG2000":
        return _jpeg2000(data, image)
    if image.format == "PSD":
        _check_psd(data)
    if min_size:
        image.draft(None, (min_size, min_size))
    image.load()
    return of_loaded(image, data[24] if image.format == "PNG" and image.mode != "P" else 0)


def of_loaded(image: Image.Image, bits: int = 0) -> Raw:
    """From any of Pillow's modes. bits: per sample in the file, where they are not the mode's."""
    orientation, profile = orientation_of(image), image.info.get("icc_profile") or b""
    key, kind = image.info.get("transparency"), image.mode.rstrip("aA")
    if image.mode in ("P", "PA") or image.mode in ("YCbCr", "HSV", "RGBX", "1"):
        clear = kind == "P" and image.has_transparency_data
        image = image.convert({"1": "L"}.get(image.mode, "RGBA" if clear else "RGB"))
        key = None if kind != "1" or key is None else int(key > 0)  # Pillow says 1 or 255
    samples = np.asarray(image)
    samples = samples[..., None] if samples.ndim == 2 else samples
    if image.mode == "I" and image.format != "PPM":
        bits = 32
    elif samples.dtype.kind in "iu" and samples.dtype.itemsize > 1:
        samples, bits = samples.astype(np.uint16), 16
    bits = bits or (1 if kind == "1" else 8)
    if bits < 8:  # Pillow has scaled them to 8, but not the transparent one
        samples = np.round(samples / (255 / (2**bits - 1))).astype(np.uint8)
    if key is not None and isinstance(key, int | tuple) and samples.shape[-1] in (1, 3):
        samples = _with_key(samples, key, 2**bits - 1)
    space = {"CMYK": "cmyk", "LAB": "lab", "RGB": "rgb"}.get(
        image.mode.rstrip("aA"), "rgb" if samples.shape[-1] > 2 else "grey"
    )
    return Raw(samples, bits, space, image.mode in ("La", "RGBa"), orientation, profile)


def _with_key(samples: np.ndarray, key: int | tuple[int, ...], most: int) -> np.ndarray:
    """With alpha that is 0 where all samples equal the one transparent colour."""
    clear = (samples == np.array(key)).all(-1, keepdims=True)
    alpha = np.where(clear, 0, most).astype(samples.dtype)
    return np.concatenate([samples, alpha], -1)


def _wide_png(data: bytes, image: ImageFile.ImageFile) -> Raw:
    """16 bits of colours or grey with alpha, of which Pillow unpacks one byte at a time."""
    grey = data[25] == 4  # with alpha: four bytes per pixel, unpacked as such
    if grey:
        samples = np.ascontiguousarray(_unpacked(data, "RGBA")).view(">u2").astype(np.uint16)
    else:
        high, low = (_unpacked(data, f"{image.mode};16{order}") for order in "BL")
        samples = high.astype(np.uint16) << 8 | low
    key = image.info.get("transparency")
    if key is not None and samples.shape[-1] == 3:
        samples = _with_key(samples, key, 65535)
    loaded = opened(data)
    loaded.load()  # EXIF may follow the pixels
    space = "grey" if grey else "rgb"
    return Raw(
        samples, 16, space, False, orientation_of(loaded), image.info.get("icc_profile") or b""
    )


def _unpacked(data: bytes, layout: str) -> np.ndarray:
    """uint8 [H, W, C]: the image decoded with this raw mode of Pillow's."""
    image = opened(data)
    for i, tile in enumerate(image.tile):
        args = (layout, *tile.args[1:]) if isinstance(tile.args, tuple) else layout
        image.tile[i] = tile._replace(args=args)
    image.load()
    return np.asarray(image)


def _white(image: ImageFile.ImageFile) -> int:
    """The number that is white in a portable map."""
    args = image.tile[0].args if image.tile[0].codec_name in ("ppm", "ppm_plain") else None
    return int(args[-1]) if isinstance(args, tuple) else 255


def _wide_ppm(data: bytes, image: ImageFile.ImageFile) -> Raw:
    """Colours of more than 8 bits: read as a grey picture, three times as wide."""
    kind = "P2" if image.tile[0].codec_name == "ppm_plain" else "P5"
    head = f"{kind} {3 * image.width} {image.height} {_white(image)}\n".encode()
    # Not `opened`, which refuses so many columns.
    grey = PpmImagePlugin.PpmImageFile(io.BytesIO(head + data[image.tile[0].offset :]))
    samples = np.asarray(grey).astype(np.uint16)
    return Raw(samples.reshape(image.height, image.width, 3), 16, "rgb")


def _jpeg2000(data: bytes, image: ImageFile.ImageFile) -> Raw:
    """With its bits per sample, which Pillow shifts to 8 or 16, so that white is not white."""
    start = data.index(b"\xff\x4f\xff\x51")
    (count,) = struct.unpack_from(">H", data, start + 40)
    kinds = set(data[start + 42 : start + 42 + 3 * count : 3])
    bits = max(kinds) % 128 + 1
    if len(kinds) > 1 or max(kinds) > 127 or bits > 16 or (bits != 8 and count > 1):
        raise ValueError(
            f"JPEG 2000 with {count} bands of {bits} bits is not supported; save it as PNG or TIFF"
        )
    image.load()
    raw = of_loaded(image)
    return raw if bits == 8 else raw._replace(samples=raw.samples >> (raw.bits - bits), bits=bits)


def _check_psd(data: bytes) -> None:
    """Refuse channels that are no picture, and the white that stands for layers alone.

    A channel besides the colours is the transparency only if the number of layers is negative;
    otherwise it is a saved selection, which Pillow takes for alpha.
    """
    channels, mode = (struct.unpack_from(">H", data, place)[0] for place in (12, 24))
    resources = 30 + struct.unpack_from(">I", data, 26)[0]
    layers = resources + 4 + struct.unpack_from(">I", data, resources)[0]
    version = data.find(PSD_VERSION, resources, layers)
    if version >= 0 and not data[version + 16]:
        raise ValueError("a PSD file of layers alone; save it with maximum compatibility")
    length, of_layers, count = struct.unpack(">IIh", data[layers : layers + 10].ljust(10, b"\0"))
    transparent = length > 0 and of_layers > 0 and count < 0 and mode == 3
    extra = channels - PSD_BANDS.get(mode, channels)
    if extra > transparent:
        raise ValueError(
            f"a PSD file of {channels} channels, of which {extra} are neither colours nor the"
            " transparency of RGB; save the picture alone"
        )


def frames_of(image: Image.Image) -> int:
    """The frames of an animation, the pages of a stack."""
    composed = image.format in ("MPO", "PSD")  # of a primary picture, of layers
    return 1 if composed else getattr(image, "n_frames", 1)


def orientation_of(image: Image.Image) -> int:
    """As the EXIF tag says; 1, upright, if it cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises all kinds for damaged files
        return 1
