"""What cannot be read rightly is one line that says why, whatever the picture is for."""

import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import ImageFile

from tests.runtime.picture_files import (
    CMYK,
    HEIGHT,
    LAB,
    PALETTE,
    RANDOM,
    RGB,
    WIDTH,
    YCBCR,
    png16,
    saved,
    some,
    tiff,
    tifffiles,
)
from vitdiff_jax.data import photos, transforms
from vitdiff_jax.data.pipeline import DataError
from vitdiff_jax.runtime import pictures, pillow


def bomb():
    """A small file of 40,000 x 40,000 pixels, by its header."""
    data = bytearray(png16(some(3, 16)))
    data[16:24] = struct.pack(">II", 40_000, 40_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def wide_tiff(**tags):
    return tiff(some(3, 8), 8, **tags)


FLAT = np.full((4, 4, 1), 0.5, np.float32)
JPEG = saved(some(3, 8, 40, 30), "JPEG")
BAD = {
    "text": (b"Dear reader,\n", "cannot identify image"),
    "nothing": (b"", "cannot identify image|an empty file"),
    "cut off": (saved(some(3, 8, 40, 30))[:-500], "truncated"),
    "cut off, 16 bits": (png16(some(3, 16, 40, 30))[:-900], "truncated|broken|Truncated"),
    "cut off JPEG": (JPEG[:-200], "truncated"),
    "cut off TIFF": (tiff(some(1, 12), 12)[:60], "cut off"),
    "cut off strips": (tiff(some(3, 16), 16, t279=[4]), "truncated"),
    "bomb": (bomb(), "40000x40000 pixels are too many|exceeds limit"),
    "bomb of TIFF": (wide_tiff(t256=[2**20], t257=[2**20]), "1048576x1048576 pixels are too many"),
    "floats": (tifffiles(FLAT), "floating-point pixels of unknown range"),
    "NaN": (tifffiles(FLAT * np.nan), "floating-point pixels of unknown range"),
    "half floats": (tifffiles(FLAT.astype(np.float16)), "floating-point"),
    "signed 8": (tifffiles(FLAT.astype(np.int8)), "signed numbers of 8 bits"),
    "signed 16": (tifffiles(FLAT.astype(np.int16)), "signed numbers of 16 bits"),
    "signed 32": (tifffiles(FLAT.astype(np.int32)), "signed numbers of 32 bits"),
    "large numbers": (tifffiles(np.full((4, 4, 1), 70_000, np.uint32)), "whose white is unknown"),
    "small ones of 32 bits": (tifffiles(np.full((4, 4, 1), 9, np.uint32)), "white is unknown"),
    "complex": (tifffiles(FLAT.astype(np.complex64)), "complex numbers"),
    "five bands": (tiff(some(5, 8), 8, RGB, t338=[2, 0]), "5 bands, of which 3"),
    "a fourth band": (tiff(some(4, 8), 8, RGB, t338=[0]), "not declared as alpha"),
    "bands of other bits": (wide_tiff(t258=[5, 6, 5]), r"different kinds \(BitsPerSample \[5, 6\]"),
    "a camera's": (wide_tiff(t50706=[1]), "camera's raw file"),
    "a preview": (wide_tiff(t254=[1]), "preview"),
    "a mosaic": (wide_tiff(t262=[32803]), "PhotometricInterpretation 32803"),
    "other inks": (tiff(some(4, 8), 8, CMYK, t332=[2]), "PhotometricInterpretation 5"),
    "wide Lab": (tiff(some(3, 16), 16, LAB), "CIELab of 16 bits"),
    "coarse chroma": (tiff(some(3, 8), 8, YCBCR), "YCbCr with coarse chroma"),
    "float differences": (tiff(some(1, 16), 16, t317=[3], t259=[8]), "Predictor 3"),
    "an unfit palette": (tiff(some(1, 4), 4, PALETTE, t320=[1, 2, 3]), "palette that does not fit"),
    "PFM": (b"Pf\n2 2\n-1.0\n" + bytes(16), "floating-point"),
    "JPEG 2000 of 16-bit colours": (
        saved(some(3, 8, 16, 16), "JPEG2000").replace(b"\x07\x01\x01" * 3, b"\x0f\x01\x01" * 3),
        "JPEG 2000 with 3 bands of 16 bits",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # Pillow's
@pytest.mark.parametrize(("data", "words"), BAD.values(), ids=BAD)
def test_what_cannot_be_read_is_one_line_in_both_uses(tmp_path, data, words):
    (tmp_path / "photo.jpg").write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        photos.read(tmp_path / "photo.jpg")
    assert "photo.jpg: " in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises((ValueError, OSError), match=words):
        transforms.decode(data, 3)


def test_the_size_is_looked_at_before_anything_is_unpacked(monkeypatch):
    monkeypatch.setattr(pillow, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    monkeypatch.setattr("vitdiff_jax.runtime.tiff._samples", None)
    for data in (png16(some(3, 16)), tiff(some(3, 16), 16)):
        with pytest.raises(ValueError, match="7x5 pixels are too many"):
            pictures.read(data)


@pytest.mark.filterwarnings("ignore")  # Pillow's
def test_damaged_tiffs_are_refused_in_two_ways_only():
    whole = [tiff(some(3, bits), bits, compression=c) for bits in (8, 12, 16) for c in (1, 5, 8)]
    for data, _ in itertools.product(whole, range(60)):
        other = bytearray(data)
        for _ in range(RANDOM.integers(1, 6)):
            other[RANDOM.integers(len(other))] = RANDOM.integers(256)
        end = RANDOM.integers(len(other)) if RANDOM.random() < 0.3 else None
        try:
            pictures.read(bytes(other[:end]))
        except (ValueError, OSError):
            continue
