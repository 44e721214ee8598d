"""Photos: every bit of every kind comes in, and goes out again in the same kind.

Files are written by Pillow, by tifffile, or byte by byte here where neither can.
"""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageFile

from vitdiff_jax.data import photos, transforms
from vitdiff_jax.data.pipeline import DataError

RANDOM = np.random.default_rng(0)
HEIGHT, WIDTH = 5, 7
CHANNELS = {"grey": 1, "grey with alpha": 2, "colours": 3, "colours with alpha": 4}
PNG_KINDS = {1: 0, 2: 4, 3: 2, 4: 6}


def some(channels, bits=8, height=HEIGHT, width=WIDTH):
    return RANDOM.integers(0, 2**bits, (height, width, channels), f"uint{bits}")


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png16(samples, *chunks):
    """A PNG file of uint16 samples [H, W, C], nothing filtered."""
    height, width, channels = samples.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, PNG_KINDS[channels], 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(itertools.starmap(chunk, parts))


def pillow(image, kind="PNG", **options):
    """A file as Pillow writes it; image: pixels or one of Pillow's."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(samples, **options):
    """A TIFF file of samples [H, W, C] as tifffile writes it."""
    file, channels = io.BytesIO(), samples.shape[-1]
    samples = samples[..., 0] if channels == 1 else samples
    photometric = "rgb" if channels > 2 else "minisblack"
    extra = ["unassalpha"] if channels == 4 else None
    tifffile.imwrite(file, samples, **dict(photometric=photometric, extrasamples=extra) | options)
    return file.getvalue()


@pytest.fixture
def read(tmp_path):
    """From the bytes of a file to a photo."""

    def read(data, name="photo.png"):
        (tmp_path / name).write_bytes(data)
        return photos.read(tmp_path / name)

    return read


def assert_holds(photo, samples):
    """The photo is these samples [H, W, 1 to 4], alpha last, and writes them again."""
    bits, colours = 8 * samples.dtype.itemsize, samples.shape[-1] - 1 | 1
    assert photo.depth == bits
    assert photo.x.dtype == np.float32
    x = samples[..., :colours].astype(np.float64) / (2**bits - 1) * 2 - 1
    assert photo.x.shape == x.shape
    np.testing.assert_allclose(photo.x, x, atol=1e-7)
    if samples.shape[-1] in (2, 4):
        np.testing.assert_array_equal(photo.alpha, samples[..., colours:], strict=True)
    else:
        assert photo.alpha is None
    np.testing.assert_array_equal(photos.encode(photo, photo.x), samples, strict=True)


# --- Kinds ---


@pytest.mark.parametrize("write", [pillow, png16])
@pytest.mark.parametrize("channels", CHANNELS.values(), ids=CHANNELS)
def test_eight_and_sixteen_bits_come_in_and_go_out(read, channels, write):
    samples = some(channels, 16 if write is png16 else 8)
    assert_holds(read(write(samples)), samples)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_of_tiff(read, channels, order, compression):
    samples = some(channels, 16)
    assert_holds(read(tiff(samples, byteorder=order, compression=compression), "a.tif"), samples)


def test_sixteen_bits_in_strips(read):
    samples = some(3, 16, height=9)
    assert_holds(read(tiff(samples, rowsperstrip=2), "a.tif"), samples)


@pytest.mark.parametrize("kind", ["JPEG2000", "PPM"])
def test_sixteen_bits_of_other_formats(read, kind):
    samples = some(1, 16)
    assert_holds(read(pillow(samples, kind)), samples)


@pytest.mark.parametrize("bits", [8, 16])
def test_every_value_comes_back(read, bits):
    """Through float32: 65,536 values fit between -1 and 1."""
    samples = np.arange(2**bits, dtype=f"uint{bits}").reshape(-1, 2 ** (bits // 2), 1)
    photo = read(pillow(samples))
    assert photo.x.min() == -1
    assert photo.x.max() == 1
    assert_holds(photo, samples)


def test_tiff_may_count_from_white(read):
    """Pillow inverts 8 bits by itself."""
    for bits in (8, 16):
        samples = some(1, bits)
        found = read(tiff(samples, photometric="miniswhite"), "a.tif")
        assert_holds(found, 2**bits - 1 - samples)


def test_twelve_bits_fill_the_range(read):
    """As of medical cameras; the file is put together here: tag, type, count, value."""
    packed = bytes([0x00, 0x0F, 0xFF, 0x80, 0x01, 0x23])  # 0, 4095, 0x800, 0x123
    tags = [
        (256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 6),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    start = struct.pack("<2sHI", b"II", 42, 14)
    data = start + packed + struct.pack("<H", len(tags)) + entries + bytes(4)
    wanted = np.array([0, 4095, 0x800, 0x123]) * 65535 / 4095
    assert_holds(read(data, "a.tif"), np.round(wanted).astype(np.uint16)[None, :, None])


def test_palettes_become_colours(read):
    palette = Image.fromarray(some(3)).quantize(16)
    assert_holds(read(pillow(palette)), np.asarray(palette.convert("RGB")))
    alphas = bytes(range(0, 256, 16))
    there = read(pillow(palette, transparency=alphas))
    wanted = np.array(list(alphas), np.uint8)[np.asarray(palette)]
    np.testing.assert_array_equal(there.alpha[..., 0], wanted)
    assert there.x.shape[-1] == 3


def test_black_and_white_becomes_grey(read):
    samples = some(1) // 128 * 255
    assert_holds(read(pillow(Image.fromarray(samples[..., 0]).convert("1"))), samples)


def test_inks_become_colours(read):
    """CMYK: paper is white, and more ink is darker."""
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]], np.uint8)
    photo = read(pillow(Image.fromarray(inks, "CMYK"), "TIFF"), "a.tif")
    assert_holds(photo, np.array([[[255, 255, 255], [0, 255, 255], [0, 0, 0]]], np.uint8))


def test_a_jpeg_is_what_pillow_makes_of_it(read):
    data = pillow(some(3, height=20, width=30), "JPEG")
    assert_holds(read(data, "a.jpg"), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_colour_may_be_transparent(read, channels, bits):
    """Of 16 bits, only where all of them are the same."""
    samples = some(channels, bits)
    samples[0, 0, -1] = samples[0, 1, -1] ^ 1
    samples[0, 0, :-1] = samples[0, 1, :-1]
    key = tuple(int(value) for value in samples[0, 1])
    if bits == 8:
        data = pillow(samples, transparency=key if channels == 3 else key[0])
    else:
        data = png16(samples, (b"tRNS", struct.pack(f">{channels}H", *key)))
    alpha = np.where((samples == key).all(-1, keepdims=True), 0, 2**bits - 1).astype(samples.dtype)
    assert alpha[0, 1] == 0
    assert alpha[0, 0] > 0
    assert_holds(read(data), np.concatenate([samples, alpha], -1))


def test_colours_below_full_transparency_are_kept(read):
    """Nothing is laid on white."""
    samples = np.zeros((2, 2, 4), np.uint8)
    samples[..., 0] = 77
    assert_holds(read(pillow(samples)), samples)


def test_of_an_animation_the_first_picture(read):
    first, second = (Image.fromarray(some(1)[..., 0]) for _ in range(2))
    photo = read(pillow(first, "GIF", save_all=True, append_images=[second]), "a.gif")
    np.testing.assert_allclose(
        photo.x[..., :1], np.asarray(first)[..., None] / 127.5 - 1, atol=1e-6
    )


# --- Upright, with their profile ---


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(read, orientation):
    turns = [
        lambda a: a, lambda a: a[:, ::-1], lambda a: a[::-1, ::-1], lambda a: a[::-1],
        lambda a: a.swapaxes(0, 1), lambda a: np.rot90(a, -1),
        lambda a: np.rot90(a, 2).swapaxes(0, 1), np.rot90,
    ]  # fmt: skip
    turn = turns[orientation - 1]
    exif = Image.Exif()
    exif[274] = orientation
    for channels in CHANNELS.values():
        samples = some(channels)
        assert_holds(read(pillow(samples, exif=exif)), turn(samples))
        samples = some(channels, 16)
        assert_holds(read(png16(samples, (b"eXIf", exif.tobytes()[6:]))), turn(samples))
    samples = some(3, 16)
    data = tiff(samples, extratags=[(274, 3, 1, orientation, True)])
    assert_holds(read(data, "a.tif"), turn(samples))


@pytest.mark.parametrize("bits", [8, 16])
def test_the_profile_is_kept(read, bits):
    """Without it the colours of a wide-gamut camera come out pale."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    samples = some(3, bits)
    if bits == 8:
        data = pillow(samples, icc_profile=profile)
    else:
        data = png16(samples, (b"iCCP", b"name\0\0" + zlib.compress(profile)))
    assert read(data).profile == profile
    assert read(pillow(some(3))).profile == b""


# --- Going out ---


@pytest.mark.parametrize("bits", [8, 16])
def test_a_larger_result_has_its_alpha_resized(read, bits):
    """Bicubic, with all bits: a ramp stays one, and does not leave its range."""
    samples = some(4, bits, 8, 8)
    most = 2**bits - 1
    samples[..., 3] = np.linspace(0, most, 8)
    photo = read(png16(samples) if bits == 16 else pillow(samples))
    found = photos.encode(photo, np.zeros((32, 32, 3)))
    assert found.shape == (32, 32, 4)
    assert found.dtype == samples.dtype
    ramp = np.clip(
        np.interp((np.arange(32) + 0.5) / 4 - 0.5, np.arange(8), samples[0, :, 3]), 0, most
    )
    middle = slice(8, 24)
    np.testing.assert_allclose(
        found[:, middle, 3], np.tile(ramp[middle], (32, 1)), atol=1 + most / 500
    )
    assert (np.diff(found[..., 3].astype(int), axis=1) >= 0).all()


def test_results_are_rounded_and_clipped(read):
    for bits in (8, 16):
        samples = some(1, bits)
        photo = read(pillow(samples))
        x = np.array([-1.01, -1, -1 + 0.4 * 2 / (2**bits - 1), 0.99999999, 1.2])
        found = photos.encode(photo, x[None, :, None])[0, :, 0]
        np.testing.assert_array_equal(found, [0, 0, 0, 2**bits - 1, 2**bits - 1])


def test_grey_may_become_colours(read):
    samples = some(2, 16)
    x = RANDOM.uniform(-1, 1, (HEIGHT, WIDTH, 3))
    found = photos.encode(read(png16(samples)), x)
    assert found.dtype == np.uint16
    np.testing.assert_allclose(found[..., :3], (x + 1) / 2 * 65535, atol=0.51)
    np.testing.assert_array_equal(found[..., 3], samples[..., 1])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_results_that_are_no_numbers_are_refused(read, value):
    photo = read(pillow(some(3)), "cat.png")
    x = photo.x.copy()
    x[1, 2, 0] = value
    with pytest.raises(ValueError, match=r"^cat\.png: the restored pixels are not finite"):
        photos.encode(photo, x)


# --- Which files ---


def test_pictures_of_a_folder_are_found_by_suffix_and_sorted(tmp_path):
    for name in ("b.PNG", "a.jpg", "c/d.tiff", "notes.txt", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"?")
    names = [str(path.relative_to(tmp_path)) for path in photos.find(tmp_path)]
    assert names == ["a.jpg", "b.PNG", "c/d.tiff"]
    assert photos.find(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]  # as it was asked for


def test_nothing_found_is_an_error(tmp_path):
    with pytest.raises(DataError, match="contains no images"):
        photos.find(tmp_path)
    with pytest.raises(DataError, match=r"none\.png: no such image or folder"):
        photos.find(tmp_path / "none.png")


# --- What cannot be read ---


def bomb():
    """A small file of 40,000 x 40,000 pixels, by its header."""
    data = bytearray(png16(some(3, 16)))
    data[16:24] = struct.pack(">II", 40_000, 40_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def whole(height=40, width=30):
    return pillow(some(3, 8, height, width))


BAD = {
    "text": (b"Dear reader,\n", "cannot identify image"),
    "nothing": (b"", "cannot identify image"),
    "cut off": (whole()[:-500], "truncated"),
    "cut off, 16 bits": (png16(some(3, 16, 40, 30))[:-900], "truncated|broken|Truncated"),
    "cut off JPEG": (pillow(some(3, 8, 40, 30), "JPEG")[:-200], "truncated"),
    "bomb": (bomb(), "40000x40000 pixels are too many|exceeds limit"),
    "floats": (tiff(np.full((4, 4, 1), np.nan, np.float32)), "floating-point"),
    "large numbers": (tiff(np.full((4, 4, 1), 70_000, np.int32)), "outside 0 to 65535"),
    "planes": (tiff(some(16, 16, 3), planarconfig="separate"), "16-bit planar TIFF"),
    "packed planes": (
        tiff(some(16, 16, 3), planarconfig="separate", compression="zlib"), "16-bit planar TIFF",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "words"), BAD.values(), ids=BAD)
def test_what_cannot_be_read_is_one_line_with_its_name(read, data, words):
    with pytest.raises(DataError, match=words) as caught:
        read(data, "photo.jpg")
    assert "photo.jpg: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_or_too_large(read, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"none\.png"):
        photos.read(tmp_path / "none.png")
    with pytest.raises(DataError, match=str(tmp_path)):
        photos.read(tmp_path)
    monkeypatch.setattr("vitdiff_jax.data.files.MAX_BYTES", 10)
    with pytest.raises(DataError, match="larger than 10 bytes"):
        read(whole())


def test_the_size_is_looked_at_before_anything_is_unpacked(read, monkeypatch):
    """A bomb of 40,000 x 40,000 pixels would ask for 5 GB."""
    monkeypatch.setattr(transforms, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    with pytest.raises(DataError, match="7x5 pixels are too many"):
        read(png16(some(3, 16)))


def test_premultiplied_colours_of_sixteen_bits_keep_eight(read):
    """Pillow divides by the alpha in 8 bits."""
    samples = some(4, 16)
    samples[..., 3] = 65535
    found = read(tiff(samples, extrasamples=["assocalpha"]), "a.tif")
    assert_holds(found, (samples >> 8).astype(np.uint8))
