"""TIFF files of any kind, restored and trained on; tifffile's reading of them is compared, too."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.runtime.picture_files import (
    CMYK,
    GREY,
    LAB,
    PALETTE,
    WHITE,
    YCBCR,
    saved,
    scaled,
    some,
    tiff,
    tifffiles,
)


@pytest.mark.parametrize("bits", [*range(1, 17)])
@pytest.mark.parametrize("photometric", [GREY, WHITE])
def test_grey_tiff_of_any_bits(assert_is, bits, photometric):
    samples = some(1, bits)
    wanted = scaled(samples if photometric == GREY else 2**bits - 1 - samples.astype(int), bits)
    for order, compression, rows in (("<", 1, None), (">", 8, 2), ("<", 5, 3), (">", 32773, 1)):
        assert_is(tiff(samples, bits, photometric, order, compression, rows=rows), wanted)


@pytest.mark.parametrize("bits", [1, 2, 4, 5, 8, 10, 12, 14, 16])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_tiff_of_several_bands(assert_is, channels, planar, bits):
    samples = some(channels, bits)
    for order, compression, rows in (("<", 1, 2), (">", 8, None), (">", 5, 2)):
        data = tiff(samples, bits, None, order, compression, planar, rows)
        assert_is(data, scaled(samples, bits))


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("how", [
    {}, {"tile": (16, 16)}, {"planarconfig": "separate"}, {"rowsperstrip": 2}, {"bigtiff": True},
    {"byteorder": ">"}, {"tile": (16, 16), "planarconfig": "separate", "byteorder": ">"},
])  # fmt: skip
@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_as_tifffile_reads_it(assert_is, bits, how, compression):
    samples = some(3, bits, 21, 19)
    if how.get("planarconfig") == "separate":
        data = tifffiles(
            np.moveaxis(samples, -1, 0), photometric="rgb", compression=compression, **how
        )
    else:
        data = tifffiles(samples, photometric="rgb", compression=compression, **how)
    read = tifffile.imread(io.BytesIO(data))
    np.testing.assert_array_equal(
        np.moveaxis(read, 0, -1) if how.get("planarconfig") == "separate" else read, samples
    )
    assert_is(data, samples)


@pytest.mark.parametrize("bits", [8, 16])
def test_differences_in_tiff(assert_is, bits):
    """Predictor 2: each sample is stored as its difference to that on its left."""
    samples = some(3, bits)
    for channels in (1, 3):
        part = samples[..., :channels]
        stored = np.diff(part, axis=1, prepend=part.dtype.type(0))
        for compression in (5, 8):
            assert_is(tiff(stored, bits, compression=compression, t317=[2]), part)


@pytest.mark.parametrize("compression", [1, 32773])
def test_no_differences_where_tiff_has_none(assert_is, compression):
    """The tag is left from another compression: libtiff ignores it there, and tifffile does not."""
    for channels in (1, 3):
        samples = some(channels)
        data = tiff(samples, 8, compression=compression, t317=[2])
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(np.asarray(image), samples.squeeze())
        assert_is(data, samples)


def test_bits_of_tiff_may_begin_at_the_other_end(assert_is):
    samples = some(1, 4, 4, 8)
    data = bytearray(tiff(samples, 4, t266=[2]))
    table = [int(f"{i:08b}"[::-1], 2) for i in range(256)]
    data[8 : 8 + 16] = bytes(table[value] for value in data[8 : 8 + 16])
    assert_is(bytes(data), scaled(samples, 4))


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("factor", [1, 256, 257])
def test_palettes_of_tiff(assert_is, bits, factor):
    """Of 16 bits, which are 8 in truth, by either of the two customs, or badly stored."""
    colours, which = some(3, 8, 2**bits, 1)[:, 0], some(1, bits)
    if factor == 256 and colours.max() < 1:
        return
    table = (colours.astype(int) * factor).T.ravel().tolist()
    assert_is(tiff(which, bits, PALETTE, t320=table), colours[which[..., 0]])


@pytest.mark.parametrize("bits", [8, 16])
def test_inks(assert_is, bits):
    """Paper is white, and ink and black multiply."""
    inks = some(4, bits)
    most = 2**bits - 1
    wanted = np.round((1 - inks[..., :3] / most) * (1 - inks[..., 3:] / most) * most)
    assert_is(tiff(inks, bits, CMYK), wanted.astype(inks.dtype), error=1)
    if bits == 8:
        assert_is(saved(Image.fromarray(inks, "CMYK"), "TIFF"), wanted.astype(np.uint8), error=1)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [2, 4])
def test_premultiplied_alpha(assert_is, channels, bits):
    """The colours of what is nearly clear are coarse, those of what is clear are lost."""
    samples = some(channels, bits)
    samples[..., -1] |= 2 ** (bits - 1)
    most = 2**bits - 1
    stored = samples.copy()
    stored[..., :-1] = np.round(samples[..., :-1] / most * samples[..., -1:])
    assert_is(tiff(stored, bits, t338=[1]), samples, error=1)


def test_cielab(assert_is):
    """Grey is grey, and a red of sRGB comes back; from published conversions (D50)."""
    lab = np.array([[[0, 0, 0], [255, 0, 0], [137, 0, 0], [138, 81, 70]]], np.int16)
    wanted = np.array([[[0, 0, 0], [255, 255, 255], [128, 128, 128], [255, 0, 0]]], np.uint8)
    assert_is(tiff(lab % 256, 8, LAB), wanted, error=6)


def test_luma_and_chroma_without_loss(assert_is):
    """YCbCr of BT.601, whose chroma is as large as its luma."""
    ycc = np.array([[[0, 128, 128], [255, 128, 128], [76, 85, 255]]], np.uint8)
    wanted = np.array([[[0, 0, 0], [255, 255, 255], [254, 0, 0]]], np.uint8)
    assert_is(tiff(ycc, 8, YCBCR, t530=[1, 1]), wanted, error=2)


@pytest.mark.parametrize("kind", ["jpeg", "group4"])
def test_the_kinds_of_tiff_that_pillow_reads(assert_is, kind):
    if kind == "group4":
        bits = some(1, 1)
        image = Image.fromarray(bits[..., 0] * 255).convert("1")
        assert_is(saved(image, "TIFF", compression=kind), bits * 255)
        return
    for channels in (1, 3):
        samples = np.full((16, 16, channels), 77, np.uint8)
        assert_is(saved(samples, "TIFF", compression=kind, quality=100), samples, error=2)
