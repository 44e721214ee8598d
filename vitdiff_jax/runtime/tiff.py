"""TIFF files without loss: whole numbers of 1 to 16 bits, floats, strips, tiles and planes.

Pillow reads a fixed list of combinations, and some of them wrongly: 12 bits come out as a sixteenth
of their brightness, of 16-bit colours 8 bits are left, 16 bits that count from white are inverted,
planes of 16 bits are scrambled. So samples are unpacked here; libtiff undoes the compression.
"""

import io
import struct
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import TiffImagePlugin

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
CODES = {1: "B", 3: "H", 4: "I", 7: "B", 11: "f", 12: "d", 13: "I", 16: "Q", 18: "Q"}
"""The types of values as codes of `struct`; texts, fractions and signed numbers are not needed."""
SUBTYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
OFFSETS, ORIENTATION, BANDS, ROWS, SIZES, PLANES, PREDICTOR = 273, 274, 277, 278, 279, 284, 317
PALETTE, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_SIZES, INKS = 320, 322, 323, 324, 325, 332
FILL_ORDER, EXTRA, FORMAT, SUBSAMPLING, PROFILE, CAMERA = 266, 338, 339, 530, 34675, 50706
KNOWN = (
    *(SUBTYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, OFFSETS, ORIENTATION),
    *(BANDS, ROWS, SIZES, PLANES, PREDICTOR, PALETTE, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS),
    *(TILE_SIZES, INKS, EXTRA, FORMAT, SUBSAMPLING, PROFILE, CAMERA),
)
"""Others may be as large as the picture."""
JPEG = 7
LOSSLESS = (1, 5, 8, 32773, 32946, 34925, 50000)
"""Of compression: none, LZW, Deflate, PackBits, Deflate, LZMA, Zstandard."""
WHITE_IS_ZERO, CMYK, YCBCR = 0, 5, 6
SPACES = {0: "grey", 1: "grey", 2: "rgb", 3: "palette", 5: "cmyk", 8: "lab"}
COLOURS = {"grey": 1, "rgb": 3, "palette": 1, "cmyk": 4, "lab": 3}
REVERSED = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))

Tags = Mapping[int, tuple]


class Raw(NamedTuple):
    """The samples of a file before any conversion.

    samples: [H, W, C], unsigned or float32, as stored: 12 bits go up to 4095; alpha last.
    bits: per sample. space: "grey", "rgb", "cmyk" or "lab", the meaning of the samples but alpha.
    premultiplied: whether colours are multiplied by alpha. orientation: as in EXIF.
    """

    samples: np.ndarray
    bits: int
    space: str
    premultiplied: bool = False
    orientation: int = 1
    profile: bytes = b""


def tags_of(data: bytes) -> Tags:
    """The numeric tags of the first image. Raises ValueError if they are damaged."""
    return _directory(data, _first(data))[0]


def pages(data: bytes) -> int:
    """The number of pictures, without previews of them and masks. Raises ValueError as above."""
    at = _first(data)
    tags, following = _directory(data, at)
    count, seen = 1, {0, at}
    while following not in seen:
        seen.add(following)
        try:
            tags, following = _directory(data, following)
        except ValueError:  # a chain that leads nowhere
            break
        count += WIDTH in tags and HEIGHT in tags and not _one(tags, SUBTYPE, 0) & 5
    return count


def _words(data: bytes) -> tuple[str, str, str, str]:
    """The byte order, and the types of counts, of entries and of places; BigTIFF has wider ones."""
    order = "<" if data[:2] == b"II" else ">"
    return (order, "Q", "HHQ", "Q") if 43 in data[2:4] else (order, "H", "HHI", "I")


def _first(data: bytes) -> int:
    """The place of the first image's directory."""
    order, _, _, word = _words(data)
    size = struct.calcsize(word)
    return struct.unpack(order + word, data[size : 2 * size].ljust(size, b"\0"))[0]


def _directory(data: bytes, at: int) -> tuple[Tags, int]:
    """The numeric tags of the image whose directory is at this place, and the next one's place."""
    order, count_code, entry, word = _words(data)
    big = word == "Q"
    try:
        (count,) = struct.unpack_from(order + count_code, data, at)
        first, found = at + struct.calcsize(order + count_code), {}
        for i in range(count):
            place = first + i * (20 if big else 12)
            tag, kind, n = struct.unpack_from(order + entry, data, place)
            if kind not in CODES or tag not in KNOWN:
                continue
            place += struct.calcsize(order + entry)
            if n * struct.calcsize(CODES[kind]) > (8 if big else 4):
                (place,) = struct.unpack_from(order + word, data, place)
            found[tag] = struct.unpack_from(f"{order}{n}{CODES[kind]}", data, place)
        end = first + count * (20 if big else 12)
        following = data[end : end + struct.calcsize(word)].ljust(struct.calcsize(word), b"\0")
        tags = {tag: values for tag, values in found.items() if values}
        return tags, struct.unpack(order + word, following)[0]
    except struct.error as error:
        raise ValueError("the tags of this TIFF file are damaged or cut off") from error


def is_ours(tags: Tags) -> bool:
    """Whether `read` reads it; Pillow reads the rest well: JPEG, fax, and YCbCr."""
    return _one(tags, COMPRESSION, 1) in LOSSLESS and _one(tags, PHOTOMETRIC) != YCBCR


def shape(tags: Tags) -> tuple[int, int, int]:
    """(height, width, 1 or 3) as stored. Raises ValueError for what cannot be read rightly."""
    height, width = _one(tags, HEIGHT), _one(tags, WIDTH)
    if CAMERA in tags or _one(tags, SUBTYPE, 0) & 1:
        raise ValueError("a camera's raw file, or a preview only; develop it to PNG or TIFF")
    if PHOTOMETRIC not in tags:
        raise ValueError(
            "the TIFF file does not say whether 0 is black (PhotometricInterpretation)"
        )
    coarse = _one(tags, COMPRESSION, 1) != JPEG and set(tags.get(SUBSAMPLING, (2, 2))) != {1}
    if _one(tags, PHOTOMETRIC) == YCBCR and coarse:
        raise ValueError("YCbCr with coarse chroma, without JPEG, is not supported; save it as RGB")
    return height, width, 1 if _one(tags, PHOTOMETRIC) in (0, 1) else 3


def read(data: bytes, tags: Tags) -> Raw:
    """The samples of the first image. Raises ValueError for what cannot be read rightly."""
    height, width, _ = shape(tags)
    photometric, bits = _one(tags, PHOTOMETRIC), _bits(tags)
    if photometric not in SPACES or (photometric == CMYK and _one(tags, INKS, 1) != 1):
        raise ValueError(f"colours of an unknown kind (PhotometricInterpretation {photometric})")
    space, bands = SPACES[photometric], _one(tags, BANDS, 1)
    extra = tags.get(EXTRA, ())[: bands - COLOURS[space]]
    if bands - COLOURS[space] not in (0, 1) or (bands > COLOURS[space] and extra[:1] < (1,)):
        raise ValueError(
            f"{bands} bands, of which {COLOURS[space]} are the {space} picture and the others are"
            " not declared as alpha (ExtraSamples); save the picture alone"
        )
    if space == "lab" and bits != 8:
        raise ValueError(f"CIELab of {bits} bits; save it as RGB")
    samples = _samples(data, tags, (height, width, bands), bits)
    if photometric == WHITE_IS_ZERO:
        most = np.array(1 if samples.dtype == np.float32 else 2**bits - 1, samples.dtype)
        samples = np.concatenate([most - samples[..., :1], samples[..., 1:]], -1)
    if space == "palette":
        samples, bits, space = _looked_up(samples, tags, bits), 8, "rgb"
    return Raw(
        samples, bits, space, extra[:1] == (1,), _one(tags, ORIENTATION, 1),
        bytes(tags.get(PROFILE, ())),
    )  # fmt: skip


def _one(tags: Tags, tag: int, default: int | None = None) -> int:
    """The value of a tag that has one. Raises ValueError where a required one is missing."""
    found = tags.get(tag, (default,))[0]
    if found is None:
        raise ValueError(f"the TIFF file has no tag {tag}")
    return int(found)


def _bits(tags: Tags) -> int:
    """Bits per sample, the same in all bands."""
    found, form = set(tags.get(BITS, (1,))), set(tags.get(FORMAT, (1,)))
    if len(found) > 1 or len(form) > 1:
        raise ValueError(f"bands of different kinds (BitsPerSample {sorted(found)})")
    (bits,), (kind,) = found, form
    what = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}.get(kind, "whole")
    allowed = (16, 32, 64) if kind == 3 else (*range(1, 17), 32)
    if what in ("signed", "complex") or bits not in allowed:
        raise ValueError(
            f"{what} numbers of {bits} bits are not supported; save it as 8 or 16 bits"
        )
    return bits


def _samples(data: bytes, tags: Tags, shape: tuple[int, int, int], bits: int) -> np.ndarray:
    """[H, W, bands] from strips or tiles, with the bands in one plane or in one each."""
    height, width, bands = shape
    planes = bands if _one(tags, PLANES, 1) == 2 else 1
    tiled = TILE_WIDTH in tags
    rows = _one(tags, TILE_HEIGHT) if tiled else min(_one(tags, ROWS, height), height)
    columns = _one(tags, TILE_WIDTH) if tiled else width
    offsets, sizes = (
        tags.get(tag, ()) for tag in ((TILE_OFFSETS, TILE_SIZES) if tiled else (OFFSETS, SIZES))
    )
    if not rows or not columns or not height or not width:
        raise ValueError("a TIFF file without pixels")
    across, down = -(-width // columns), -(-height // rows)
    if min(len(offsets), len(sizes)) < planes * down * across:
        raise ValueError("truncated: strips or tiles are missing")
    each = bands // planes
    found = None
    for i in range(planes * down * across):
        plane, place = divmod(i, down * across)
        top, left = place // across * rows, place % across * columns
        high = rows if tiled else min(rows, height - top)
        part = data[offsets[i] : offsets[i] + sizes[i]]
        block = _block(part, tags, (high, columns, each), bits, data[:2])
        if found is None:
            found = np.empty(shape, block.dtype)
        block = block[: height - top, : width - left]
        found[top : top + rows, left : left + columns, plane * each : (plane + 1) * each] = block
    assert found is not None
    return found


def _block(part: bytes, tags: Tags, shape: tuple, bits: int, order: bytes) -> np.ndarray:
    """[rows, columns, bands] of a strip or tile."""
    rows, columns, bands = shape
    line, floats = -(-columns * bands * bits // 8), _one(tags, FORMAT, 1) == 3
    if _one(tags, FILL_ORDER, 1) == 2:
        part = part.translate(REVERSED)
    compression = _one(tags, COMPRESSION, 1)
    plain = compression in (1, 32773)  # where libtiff ignores the tag too
    predictor = 1 if plain else _one(tags, PREDICTOR, 1)
    if predictor != 1 and (predictor != 2 or floats or bits not in (8, 16, 32)):
        raise ValueError(f"differences of an unsupported kind (Predictor {predictor})")
    part = _decompressed(part, compression, rows, line)
    if len(part) < rows * line:
        raise ValueError("truncated: a strip or tile ends early")
    lines = np.frombuffer(part, np.uint8, rows * line).reshape(rows, line)
    if bits in (8, 16, 32, 64):
        dtype = np.dtype(f"{'<' if order == b'II' else '>'}{'f' if floats else 'u'}{bits // 8}")
        values = lines.view(dtype).astype(dtype.newbyteorder("="))
    else:  # packed, the highest bit first
        ones = np.unpackbits(lines, axis=1)[:, : columns * bands * bits].reshape(rows, -1, bits)
        values = ones @ (1 << np.arange(bits)[::-1]).astype(np.uint8 if bits < 8 else np.uint16)
    values = values.reshape(shape)
    if predictor == 2:
        values = np.cumsum(values, 1, dtype=values.dtype)
    return values.astype(np.float32) if floats else values


def _decompressed(part: bytes, compression: int, rows: int, line: int) -> bytes:
    """The bytes of a strip or tile: libtiff reads it as a grey picture of `line` columns."""
    if compression == 1:
        return part
    tags = {
        WIDTH: line, HEIGHT: rows, BITS: 8, COMPRESSION: compression, PHOTOMETRIC: 1, OFFSETS: 122,
        BANDS: 1, ROWS: rows, SIZES: len(part),
    }  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)
    # Not `Image.open`, which refuses so many columns.
    with TiffImagePlugin.TiffImageFile(io.BytesIO(head + part)) as image:
        return image.tobytes()


def _looked_up(samples: np.ndarray, tags: Tags, bits: int) -> np.ndarray:
    """uint8 [H, W, 3 (and alpha)] of the indices of a palette, which stores 8 bits as 16."""
    if (
        samples.shape[2] > 1
        or samples.dtype == np.float32
        or len(tags.get(PALETTE, ())) != 3 << bits
    ):
        raise ValueError("a palette that does not fit the pixels")
    colours = np.array(tags[PALETTE], np.uint16).reshape(3, -1).T
    colours = colours if colours.max() < 256 else colours >> 8  # as libtiff does
    return colours.astype(np.uint8)[samples[..., 0]]
