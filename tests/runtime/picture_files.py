"""Files of pictures whose pixels are known: by Pillow, by tifffile, or byte by byte.

The last where neither can write them: TIFF of any number of bits, PNG with one transparent colour.
"""

import io
import itertools
import struct
import zlib

import numpy as np
import tifffile
from PIL import Image

RANDOM = np.random.default_rng(0)
HEIGHT, WIDTH = 5, 7
WHITE, GREY, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
"""TIFF's photometric interpretations."""


def some(channels, bits=8, height=HEIGHT, width=WIDTH):
    values = RANDOM.integers(0, 2**bits, (height, width, channels), np.uint16)
    values[0, 0], values[-1, -1] = 0, 2**bits - 1
    return values.astype(np.uint8) if bits <= 8 else values


def scaled(values, bits):
    """To 8 bits up to 8, else to 16, so that white stays white."""
    kind = np.uint8 if bits <= 8 else np.uint16
    return np.round(values / (2**bits - 1) * float(np.iinfo(kind).max)).astype(kind)


def on_white(samples):
    """float64 [H, W, 1 or 3] in 0..255, from alpha last."""
    values = samples / float(np.iinfo(samples.dtype).max)
    if values.shape[-1] in (2, 4):
        values, alpha = values[..., :-1], values[..., -1:]
        values = values * alpha + 1 - alpha
    return 255 * values


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def packed(values, bits, order="<"):
    """Rows of samples as bytes; each row of less than whole bytes is filled up."""
    rows = values.reshape(len(values), -1)
    if bits in (8, 16, 32):
        return [row.astype(f"{order}u{bits // 8}").tobytes() for row in rows]
    ones = rows[..., None] >> np.arange(bits)[::-1] & 1
    return [np.packbits(row.astype(np.uint8).ravel()).tobytes() for row in ones]


def png(samples, bits, kind, *chunks):
    """Nothing filtered. kind: 0 grey, 2 colours, 3 palette, 4 grey with alpha, 6 with alpha."""
    height, width = samples.shape[:2]
    lines = b"".join(b"\0" + row for row in packed(samples, bits, ">"))
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(itertools.starmap(chunk, parts))


def png16(samples, *chunks):
    return png(samples, 16, {1: 0, 2: 4, 3: 2, 4: 6}[samples.shape[-1]], *chunks)


def lzw(data):
    """TIFF's LZW without any compression: each byte is its own code of nine bits."""
    codes = []
    for start in range(0, len(data), 200):
        codes += [256, *data[start : start + 200]]
    ones = np.array([*codes, 257])[:, None] >> np.arange(9)[::-1] & 1
    return np.packbits(ones.astype(np.uint8).ravel()).tobytes()


def packbits(data):
    """Each byte once: a run of one."""
    return b"".join(bytes([0, value]) for value in data)


PACK = {1: bytes, 5: lzw, 8: zlib.compress, 32946: zlib.compress, 32773: packbits}


def tiff(samples, bits, photometric=None, order="<", compression=1, planar=1, rows=None, **tags):
    """Strips of a TIFF file of whole numbers [H, W, C] of any number of bits; tags by number."""
    height, width, bands = samples.shape
    photometric = (GREY if bands < 3 else RGB) if photometric is None else photometric
    rows = rows or height
    planes = np.moveaxis(samples, -1, 0)[..., None] if planar == 2 else [samples]
    strips = [
        PACK[compression](b"".join(packed(plane[top : top + rows], bits, order)))
        for plane in planes
        for top in range(0, height, rows)
    ]
    starts = np.cumsum([8, *map(len, strips)])
    found = {
        256: [width], 257: [height], 258: [bits] * bands, 259: [compression], 262: [photometric],
        273: list(starts[:-1]), 277: [bands], 278: [rows], 279: list(map(len, strips)),
        284: [planar],
    } | {int(tag.lstrip("t")): value for tag, value in tags.items()}  # fmt: skip
    if bands in (2, 4) and photometric != CMYK:
        found.setdefault(338, [2])
    body, entries, place = b"".join(strips), b"", 8 + sum(map(len, strips))
    for tag, values in sorted(found.items()):
        data = np.array(values).astype(f"{order}u4").tobytes()
        if len(values) > 1:
            body, place, data = body + data, place + len(data), struct.pack(order + "I", place)
        entries += struct.pack(order + "HHI", tag, 4, len(values)) + data
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(order + "I", place)
    return head + body + struct.pack(order + "H", len(found)) + entries + bytes(4)


def saved(image, kind="PNG", **options):
    """A file as Pillow writes it; image: pixels or one of Pillow's."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tifffiles(samples, **options):
    file = io.BytesIO()
    samples = samples[..., 0] if samples.shape[-1] == 1 else samples
    tifffile.imwrite(file, samples, **options)
    return file.getvalue()
