"""One reader: what is trained on is what is restored, and both are the pixels that were written.

TIFF: `test_pictures_tiff.py`. What cannot be read: `test_pictures_refused.py`.
"""

import io
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.runtime.picture_files import (
    HEIGHT,
    RANDOM,
    WIDTH,
    png,
    png16,
    saved,
    scaled,
    some,
    tiff,
    tifffiles,
)
from vitdiff_jax.data import transforms
from vitdiff_jax.runtime import pictures, pillow

CHANNELS = {"grey": 1, "grey with alpha": 2, "colours": 3, "colours with alpha": 4}


# --- PNG ---


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_png(assert_is, bits):
    samples = some(1, bits)
    assert_is(png(samples, bits, 0), scaled(samples, bits))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_png_of_several_channels(assert_is, channels, bits):
    samples = some(channels, bits)
    assert_is(png(samples, bits, {2: 4, 3: 2, 4: 6}[channels]), samples)


@pytest.mark.parametrize(
    ("channels", "bits"), [(1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (3, 8), (3, 16)]
)
def test_one_colour_of_a_png_is_transparent(assert_is, channels, bits):
    """Only where all its samples are equal, and in the numbers of the file: 5 of 15 is 5."""
    samples = some(channels, bits)
    key = samples[0, 1].astype(int)
    samples[0, 2], samples[0, 2, -1] = key, key[-1] ^ 1
    data = png(samples, bits, 0 if channels == 1 else 2, (b"tRNS", key.astype(">u2").tobytes()))
    wanted = scaled(samples, bits)
    alpha = np.where((samples == key).all(-1, keepdims=True), 0, np.iinfo(wanted.dtype).max)
    assert alpha[0, 1] == 0 < alpha[0, 2]
    assert_is(data, np.concatenate([wanted, alpha.astype(wanted.dtype)], -1))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("clear", [False, True])
def test_palettes_of_png(assert_is, bits, clear):
    colours, alphas = some(4, 8, 2**bits, 1)[:, 0, :3], some(1, 8, 2**bits, 1)[:, 0]
    which = some(1, bits)
    chunks = [(b"PLTE", colours.tobytes())] + ([(b"tRNS", alphas.tobytes())] if clear else [])
    wanted = colours[which[..., 0]]
    if clear:
        wanted = np.concatenate([wanted, alphas[which[..., 0]]], -1)
    assert_is(png(which, bits, 3, *chunks), wanted)


# --- Other formats ---


@pytest.mark.parametrize("most", [1, 15, 255, 1023, 65535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_portable_maps(assert_is, kind, most):
    """Text and bytes, grey and colours, with any number as white."""
    samples = RANDOM.integers(0, most + 1, (HEIGHT, WIDTH, 1 if kind in (2, 5) else 3))
    head = f"P{kind}\n# a comment\n{WIDTH} {HEIGHT}\n{most}\n".encode()
    values = samples.astype(np.uint8 if most < 256 else ">u2")
    body = values.tobytes() if kind > 3 else " ".join(map(str, samples.ravel())).encode()
    wide = np.uint8 if most < 256 else np.uint16
    wanted = np.round(samples / most * float(np.iinfo(wide).max)).astype(wide)
    assert_is(head + body + b"\n", wanted, error=most not in (255, 65535))


@pytest.mark.parametrize("channels", CHANNELS.values(), ids=CHANNELS)
def test_jpeg_2000(assert_is, channels):
    samples = some(channels, 8, 16, 16)
    assert_is(saved(samples, "JPEG2000"), samples)


def test_jpeg_2000_of_twelve_bits(assert_is):
    """Pillow reads them as 16 and shifts them to the left, so that white is not white."""
    samples = some(1, 12, 16, 16)
    data = saved(samples, "JPEG2000")
    place = data.index(b"\xff\x4f\xff\x51") + 42
    assert data[place] == 15  # 16 bits
    assert_is(data, samples)
    image = Image.fromarray((samples << 4)[..., 0])  # as Pillow would give it
    image.format, image.load = "JPEG2000", lambda: None
    found = pillow._jpeg2000(data[:place] + b"\x0b" + data[place + 1 :], image)
    np.testing.assert_array_equal(found.samples, samples)
    assert found.bits == 12


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TGA", "WEBP", "ICO", "PCX", "QOI", "SGI", "DIB"])
def test_formats_without_loss(assert_is, kind):
    samples = some(3, 8, 16, 16)
    if kind == "GIF":
        image = Image.fromarray(samples).quantize(64)
        assert_is(saved(image, kind), np.asarray(image.convert("RGB")))
        return
    options = {"WEBP": {"lossless": True}, "ICO": {"sizes": [(16, 16)]}}
    data = saved(samples, kind, **options.get(kind, {}))
    assert_is(data, samples)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_of_several_frames(assert_is, kind):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    data = saved(first, kind, save_all=True, append_images=[second])
    assert_is(data, np.broadcast_to(np.array([255, 0, 0], np.uint8), (8, 8, 3)), error=2)


# --- Upright, with their profile ---

TURNS = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNS)
def test_upright(assert_is, orientation):
    turn, exif = TURNS[orientation], Image.Exif()
    exif[274] = orientation
    for channels in CHANNELS.values():
        samples = some(channels)
        assert_is(saved(samples, exif=exif), turn(samples))
        stored = transforms.decode(saved(samples[..., :1], exif=exif), 1, upright=False)
        np.testing.assert_array_equal(np.asarray(stored), samples[..., 0])
        samples = some(channels, 16)
        assert_is(png16(samples, (b"eXIf", exif.tobytes()[6:])), turn(samples))
        assert_is(tiff(samples, 16, t274=[orientation]), turn(samples))
    grey = np.zeros((16, 24, 1), np.uint8)
    grey[:8] = 200
    for kind, options in (("JPEG", {}), ("TIFF", {"compression": "jpeg"})):
        data = saved(grey, kind, quality=100, exif=exif, **options)
        assert_is(data, turn(grey), error=3)


@pytest.mark.parametrize("kind", ["png", "png16", "tiff", "tiff16", "jpeg"])
def test_the_profile_is_kept(kind):
    """Without it the colours of a wide-gamut camera come out pale."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wide = (b"iCCP", b"name\0\0" + zlib.compress(profile))
    data = {
        "png": lambda: saved(some(3), icc_profile=profile),
        "png16": lambda: png16(some(3, 16), wide),
        "tiff": lambda: saved(some(3), "TIFF", icc_profile=profile),
        "tiff16": lambda: tifffiles(some(3, 16), photometric="rgb", iccprofile=profile),
        "jpeg": lambda: saved(some(3), "JPEG", icc_profile=profile),
    }[kind]()
    assert pictures.read(data).profile == profile
    assert pictures.read(saved(some(3))).profile == b""


def test_an_orientation_that_is_none_changes_nothing(assert_is):
    samples, exif = some(3), Image.Exif()
    exif[274] = 9
    assert_is(saved(samples, exif=exif), samples)
    assert_is(tiff(samples, 8, t274=[9]), samples)


# --- What Pillow has opened or made ---


def test_pictures_of_pillows():
    """A file that is open but not loaded is read with all of its bits."""
    wide = some(3, 16)
    np.testing.assert_array_equal(
        pictures.of_image(Image.open(io.BytesIO(png16(wide)))).samples, wide, strict=True
    )
    image = Image.open(io.BytesIO(saved(wide := some(4))))
    image.load()
    np.testing.assert_array_equal(pictures.of_image(image).samples, wide, strict=True)
    for channels in CHANNELS.values():
        samples = some(channels)
        image = Image.fromarray(samples[..., 0] if channels == 1 else samples)
        np.testing.assert_array_equal(pictures.of_image(image).samples, samples, strict=True)
