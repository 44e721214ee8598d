"""The one reader of picture files: to train on, to restore, as masks, to measure.

Whatever a picture is for, its pixels are the same: upright, of 8 or 16 bits per sample, grey or
RGB, with straight alpha. What cannot be read rightly is refused with a line that says why.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from vitdiff_jax.runtime import pillow, tiff
from vitdiff_jax.runtime.tiff import Raw

ASIDE = (5, 6, 7, 8)
"""The EXIF orientations of pictures whose width is stored as their height."""
VERSION = 2
"""Of the pixels that are read: what was cached of another one is made anew."""


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """samples: uint8 or uint16 [H, W, 1 to 4], alpha last and straight; float32 if asked for.

    bits: per sample in the file. profile: the ICC profile, empty if there is none. inks: whether
    the file has CMYK, which is converted as ideal inks.
    """

    samples: np.ndarray
    bits: int = 8
    profile: bytes = b""
    inks: bool = False

    @property
    def colours(self) -> np.ndarray:
        """[H, W, 1 or 3]."""
        return self.samples[..., : 1 if self.samples.shape[-1] < 3 else 3]

    @property
    def alpha(self) -> np.ndarray | None:
        """[H, W, 1], or None if there is none."""
        return self.samples[..., -1:] if self.samples.shape[-1] in (2, 4) else None

    def on_white(self, channels: int | None = None) -> np.ndarray:
        """uint8 [H, W, channels], composited on white and then rounded; None: 1 or 3, its own."""
        found = self.colours
        most = np.iinfo(found.dtype).max
        if self.alpha is not None:
            alpha = self.alpha.astype(np.int64)
            scale = most * (most // 255)
            found = (found * alpha + most * (most - alpha) + scale // 2) // scale
        elif most > 255:
            found = (found.astype(np.int64) + 128) // 257
        found = found.astype(np.uint8)
        if channels == 1 and found.shape[-1] == 3:
            return np.asarray(Image.fromarray(found).convert("L"))[..., None]
        return np.repeat(found, 3, -1) if channels == 3 and found.shape[-1] == 1 else found

    def luminance(self) -> np.ndarray:
        """float64 [H, W]: BT.601's luma of the samples, in their units."""
        weights = [1.0] if self.colours.shape[-1] == 1 else [0.299, 0.587, 0.114]
        return self.colours.astype(np.float64) @ weights


def read(data: bytes, upright: bool = True, min_size: int = 0, floats: bool = False) -> Picture:
    """Decode a picture; of several in one file the first, see `count`.

    upright: rotate as its EXIF or TIFF tag says; only published preprocessing goes without.
    min_size: let libjpeg decode at 1/2, 1/4 or 1/8 of the size while both sides keep that many
    pixels: much faster, nearly the same result. floats: return samples of unknown range (floats,
    and whole numbers of 32 bits) as float32 instead of refusing them.
    Raises ValueError or OSError for files that are not images, truncated, too large, or not
    supported.
    """
    with errors():
        raw = _tiff(data) if data[:4] in tiff.MAGIC else None
        return _finished(raw or pillow.read(data, min_size), upright, floats)


def of_image(image: Image.Image) -> Picture:
    """A picture that Pillow has opened, read anew unless it was loaded; or one made in memory."""
    data = _unread(image)
    if data is not None:
        return read(data, floats=True)
    with errors():
        image.load()
        return _finished(pillow.of_loaded(image), True, True)


def _unread(image: Image.Image) -> bytes | None:
    """The file of a picture that Pillow has opened; None once it was loaded, or a frame sought."""
    file = image.fp if isinstance(image, ImageFile.ImageFile) and image.tile else None
    if file is None or image.tell() != 0:
        return None
    place = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(place)
    return data


def shape(data: bytes) -> tuple[int, int, int]:
    """(height, width, 1 or 3) of an upright picture, from its header. Raises as `read` does."""
    with errors():
        tags = tiff.tags_of(data) if data[:4] in tiff.MAGIC else None
        if tags is not None and tiff.is_ours(tags):
            height, width, colours = tiff.shape(tags)
            orientation = tags.get(tiff.ORIENTATION, (1,))[0]
        else:
            image = pillow.opened(data)
            grey = image.mode in pillow.GREY or (image.format == "PNG" and data[25] == 4)
            height, width, colours = image.height, image.width, 1 if grey else 3
            orientation = 1 if tags else pillow.orientation_of(image)  # Pillow turns TIFF itself
        return (width, height, colours) if orientation in ASIDE else (height, width, colours)


def count(data: bytes) -> int:
    """How many pictures a file holds: frames or pages, of which `read` reads the first.

    Previews and layers do not count, nor what phones append: depth maps, the other eye. Raises as
    `read` does.
    """
    animated = b"acTL" in data[: max(0, data.find(b"IDAT"))]
    if data.startswith(b"\xff\xd8") or (data.startswith(b"\x89PNG") and not animated):
        return 1  # without parsing it again: most files of most folders
    with errors():
        if data[:4] in tiff.MAGIC:
            return tiff.pages(data)
        return pillow.frames_of(pillow.opened(data))


def count_of(image: Image.Image) -> int:
    """The same of a picture that Pillow has opened; 1 once one of them was loaded or sought."""
    data = _unread(image)
    return 1 if data is None else count(data)


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """ValueError or OSError for damaged files, for which Pillow raises all kinds of errors."""
    try:
        yield
    except UnidentifiedImageError as error:  # its message names an object in memory
        raise ValueError("cannot identify image: not an image, or unsupported format") from error
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _tiff(data: bytes) -> Raw | None:
    """None for the kinds that Pillow reads well."""
    tags = tiff.tags_of(data)
    height, width, _ = tiff.shape(tags)
    pillow.check_size(width, height)
    return tiff.read(data, tags) if tiff.is_ours(tags) else None


def _finished(raw: Raw, upright: bool, floats: bool) -> Picture:
    """Grey or RGB of 8 or 16 bits, with straight alpha, upright."""
    samples, bits = raw.samples, raw.bits
    if bits == 32 and floats:
        samples = samples.astype(np.float32)
    if samples.dtype.kind == "f":
        if not floats:
            raise ValueError("floating-point pixels of unknown range; save it as 8 or 16 bits")
        if raw.space not in ("grey", "rgb") or samples.shape[-1] not in (1, 3):
            raise ValueError(f"floating-point {raw.space} with alpha or inks is not supported")
    else:
        samples, bits = _scaled(samples, bits)
        samples = _rgb(samples, raw.space)
        if raw.premultiplied:
            samples = _straight(samples)
    samples = turned(samples, raw.orientation) if upright else samples
    return Picture(np.ascontiguousarray(samples), bits, raw.profile, raw.space == "cmyk")


def _scaled(samples: np.ndarray, bits: int) -> tuple[np.ndarray, int]:
    """Unsigned samples of any number of bits as uint8 or uint16, rounded; and that number."""
    if bits in (8, 16):
        return samples.astype(f"uint{bits}", copy=False), bits
    if bits == 32:
        if samples.min() < 0 or not 255 < samples.max() < 65536:
            raise ValueError(
                f"whole numbers of 32 bits from {samples.min()} to {samples.max()}, whose white is"
                " unknown; save it as 8 or 16 bits"
            )
        return samples.astype(np.uint16), 16
    most = 255 if bits < 8 else 65535
    table = np.round(np.arange(2**bits) * (most / (2**bits - 1)))
    return table.astype(np.uint8 if bits < 8 else np.uint16)[samples], bits


def _rgb(samples: np.ndarray, space: str) -> np.ndarray:
    """CMYK and CIELab as RGB; alpha and all else unchanged."""
    most = np.iinfo(samples.dtype).max
    if space == "cmyk":  # ideal inks; without a profile nothing better is known
        paper = (most - samples[..., :4]).astype(np.int64)
        found = (paper[..., :3] * paper[..., 3:] + most // 2) // most
        return np.concatenate([found.astype(samples.dtype), samples[..., 4:]], -1)
    if space == "lab":
        lab = np.ascontiguousarray(samples[..., :3])
        image = Image.frombytes("LAB", lab.shape[1::-1], lab.tobytes())
        kinds = [ImageCms.createProfile(name) for name in ("LAB", "sRGB")]
        found = ImageCms.profileToProfile(image, *kinds, outputMode="RGB")
        return np.concatenate([np.asarray(found), samples[..., 3:]], -1)
    return samples


def _straight(samples: np.ndarray) -> np.ndarray:
    """Colours divided by alpha."""
    most, alpha = np.iinfo(samples.dtype).max, samples[..., -1:].astype(np.int64)
    colours = (samples[..., :-1].astype(np.int64) * most + alpha // 2) // np.maximum(alpha, 1)
    colours = np.where(alpha > 0, np.minimum(colours, most), 0).astype(samples.dtype)
    return np.concatenate([colours, samples[..., -1:]], -1)


def turned(samples: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W, ...] made upright, by EXIF's orientation; other values than 2 to 8 change nothing."""
    if orientation in ASIDE:
        samples = samples.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples[::-1] if orientation in (3, 4, 7, 8) else samples
