"""Images in and out: nothing is lost at the edges, no pixel is invented for the eye."""

import struct
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageCms

from vitdiff_jax.interop import images

RANDOM = np.random.default_rng(0)


def test_all_256_values_come_back():
    u = np.arange(256, dtype=np.uint8)
    x = images.from_uint8(u)
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, np.linspace(-1, 1, 256), atol=1e-6)
    back = images.to_uint8(x)
    assert back.dtype == jnp.uint8
    np.testing.assert_array_equal(back, u)


def test_to_uint8_clips_and_rounds_to_the_nearest():
    """Samples leave [-1, 1] a little; half a grey level either way is the same grey."""
    np.testing.assert_array_equal(
        images.to_uint8(jnp.array([-1e9, -1.01, 1.01, 1e9, -jnp.inf, jnp.inf])),
        [0, 0, 255, 255, 0, 255],
    )
    x = RANDOM.uniform(-1, 1, 1000)
    gap = abs(np.asarray(images.to_uint8(jnp.asarray(x)), np.float64) - 127.5 * (x + 1))
    assert gap.max() < 0.5 + 1e-4


def some(n, height, width, channels):
    """Random images that have no white pixel, so that gutters are told apart."""
    return RANDOM.integers(0, 255, (n, height, width, channels), np.uint8)


@pytest.mark.parametrize(
    ("shape", "columns", "factor"),
    [
        ((5, 8, 8, 1), 3, 6),  # 48 / 8
        ((6, 5, 9, 3), 3, 10),  # 5 pixels: the least whole factor to 48 or more
        ((4, 48, 50, 4), 4, 1),
        ((1, 64, 64, 3), 1, 1),
        ((2, 8, 8, 1), 5, 6),  # more columns than images
    ],
)
def test_a_grid_holds_every_image_enlarged_by_a_whole_factor(shape, columns, factor):
    """Each pixel is a square of its colour; gutters and empty places are white."""
    given, gutter = some(*shape), 2
    n, height, width, channels = shape
    sheet = images.grid(given, columns)
    rows = -(-n // columns)
    step_down, step_right = height * factor + gutter, width * factor + gutter
    assert sheet.dtype == np.uint8
    assert sheet.shape == (rows * step_down + gutter, columns * step_right + gutter, channels)
    free = np.ones(sheet.shape[:2], bool)
    for i in range(n):
        top, left = gutter + i // columns * step_down, gutter + i % columns * step_right
        place = np.s_[top : top + height * factor, left : left + width * factor]
        np.testing.assert_array_equal(sheet[place], np.kron(given[i], np.ones((factor, factor, 1))))
        free[place] = False
    assert (sheet[free] == 255).all()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_png_comes_back(tmp_path, channels, mode):
    """Every value, in the file format that its name says; no partial file stays."""
    image = RANDOM.integers(0, 256, (5, 7, channels), np.uint8)
    images.save_png(tmp_path / "a.png", image)
    with Image.open(tmp_path / "a.png") as picture:
        assert (picture.format, picture.mode) == ("PNG", mode)
        np.testing.assert_array_equal(np.asarray(picture).reshape(image.shape), image)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def chunks(data):
    """{name: contents} of a PNG file, whose signature and checksums are right."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, place = {}, 8
    while place < len(data):
        length, name = struct.unpack(">I4s", data[place : place + 8])
        end = place + 8 + length
        assert struct.unpack(">I", data[end : end + 4])[0] == zlib.crc32(data[place + 4 : end])
        found[name.decode()], place = data[place + 8 : end], end + 4
    return found


@pytest.mark.parametrize(("channels", "kind"), [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_png_of_16_bits_comes_back(tmp_path, channels, kind):
    """Read as the standard says (ISO/IEC 15948): Pillow reads the upper 8 bits of most."""
    height, width = 5, 7
    image = RANDOM.integers(0, 2**16, (height, width, channels), np.uint16)
    images.save_png(tmp_path / "a.png", image)
    found = chunks((tmp_path / "a.png").read_bytes())
    assert list(found) == ["IHDR", "IDAT", "IEND"]
    header = struct.unpack(">IIBBBBB", found["IHDR"])
    assert header == (width, height, 16, kind, 0, 0, 0)
    lines = np.frombuffer(zlib.decompress(found["IDAT"]), np.uint8).reshape(height, -1).copy()
    assert (lines[:, 0] == 1).all()  # the filter "Sub": add the same byte of the pixel before
    for i in range(1 + 2 * channels, lines.shape[1]):
        lines[:, i] += lines[:, i - 2 * channels]
    values = lines[:, 1:].copy().view(">u2").reshape(image.shape)
    np.testing.assert_array_equal(values, image)
    with Image.open(tmp_path / "a.png") as picture:
        seen = np.asarray(picture)
    if channels != 2:  # of which Pillow makes RGBA
        np.testing.assert_array_equal(seen.reshape(image.shape), image >> 8 * (channels > 2))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_profile_goes_into_images_of_its_kind(tmp_path, dtype):
    """A grey picture that was colourised has colours that a grey profile does not describe."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for channels, given, kept in [(3, profile, True), (4, profile, True), (1, profile, False),
                                  (2, profile, False), (3, b"", False)]:  # fmt: skip
        images.save_png(tmp_path / "a.png", np.zeros((2, 2, channels), dtype), given)
        with Image.open(tmp_path / "a.png") as picture:
            assert picture.info.get("icc_profile") == (given if kept else None)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    """An interrupted process leaves what was there, never half a picture."""

    def full(file):
        raise OSError("no space left on device")

    old = np.full((2, 2, 3), 9, np.uint16)
    images.save_png(tmp_path / "a.png", old)
    before = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        images.save_png(tmp_path / "a.png", old + 1)
    assert (tmp_path / "a.png").read_bytes() == before
