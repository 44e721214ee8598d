"""Crops against float64 formulas, and every way in which a picture file may surprise."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile
from scipy.stats import ks_2samp, kstest

from vitdiff_jax.data import transforms
from vitdiff_jax.runtime import pillow

# --- Resizing, from its definition: a kernel as wide as what it averages, in float64 ---


def bicubic(x, a=-0.5):
    x = np.abs(x)
    inner = (a + 2) * x**3 - (a + 3) * x**2 + 1
    outer = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


def triangle(x):
    return np.maximum(1 - np.abs(x), 0)


def box(x):
    return ((x > -0.5) & (x <= 0.5)).astype(float)


def weights(n, m, kernel):
    """[m, n]: the share of each of n pixels in each of m; their centres are at i + 1/2."""
    scale = n / m
    centre = (np.arange(m)[:, None] + 0.5) * scale
    found = kernel((np.arange(n) - centre + 0.5) * (1 / max(scale, 1)))
    return found / found.sum(1, keepdims=True)


def whole(pixels):
    """What uint8 keeps between two stages: whole numbers, halves upwards."""
    return np.floor(pixels + 0.5)


def resized(pixels, width, height, kernel):
    """Along the rows first, then along the columns, each result an image of bytes."""
    rows = weights(pixels.shape[0], height, kernel)
    columns = weights(pixels.shape[1], width, kernel)
    wide = whole(np.einsum("hwc,jw->hjc", pixels, columns))
    return whole(np.einsum("ih,hjc->ijc", rows, wide))


def adm(pixels, size):
    """ADM's `center_crop_arr` (arXiv:2105.05233)."""
    pixels = pixels.astype(np.float64)
    while min(pixels.shape[:2]) >= 2 * size:
        pixels = resized(pixels, pixels.shape[1] // 2, pixels.shape[0] // 2, box)
    height, width = pixels.shape[:2]
    scale = size / min(height, width)
    pixels = resized(pixels, round(width * scale), round(height * scale), bicubic)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


def noise(width, height, channels=3, seed=0):
    """Far from black and white, where overshooting kernels would be clipped."""
    rng = np.random.default_rng(seed)
    return rng.integers(64, 192, (height, width, channels), np.uint8)


def picture(pixels):
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def assert_close(found, wanted):
    """Equal, but where a half was rounded the other way, which the next stages spread."""
    assert found.dtype == np.uint8
    assert found.shape == wanted.shape
    error = np.abs(found - wanted)
    assert error.mean() < 0.1
    assert error.max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (64, 64, 16), (128, 128, 16), (37, 53, 16), (203, 90, 24), (31, 32, 16), (67, 130, 16),
        (97, 45, 9), (9, 13, 16), (13, 7, 24), (1, 1, 4), (16, 20, 16),
    ],
)  # fmt: skip
def test_centre_crop_is_adms(width, height, size, channels):
    pixels = noise(width, height, channels)
    assert_close(transforms.centre_crop(picture(pixels), size), adm(pixels, size))


def test_centre_crop_of_the_right_size_changes_nothing():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    np.testing.assert_array_equal(transforms.centre_crop(Image.fromarray(pixels), 16), pixels)


@pytest.mark.parametrize("area", [(5, 3, 40, 47), (0, 0, 60, 50), (10, 20, 16, 25), (7, 7, 8, 8)])
def test_fixed_crop_sees_nothing_outside_of_it(area):
    left, top, right, bottom = area
    pixels = noise(60, 50)
    wanted = resized(pixels[top:bottom, left:right].astype(float), 12, 12, triangle)
    assert_close(transforms.fixed_crop(Image.fromarray(pixels), 12, area), wanted)


@pytest.fixture
def boxes(monkeypatch):
    """The boxes that `random_crop` takes."""
    found, crop = [], transforms.fixed_crop

    def spy(image, size, area):
        found.append(area)
        return crop(image, size, area)

    monkeypatch.setattr(transforms, "fixed_crop", spy)
    return found


@pytest.mark.parametrize("least", [0.08, 0.9])
def test_random_crop_is_a_resized_box(boxes, least):
    pixels, rng = noise(70, 51), np.random.default_rng(1)
    for _ in range(10):
        found = transforms.random_crop(Image.fromarray(pixels), 16, rng, least)
        left, top, right, bottom = boxes[-1]
        wanted = resized(pixels[top:bottom, left:right].astype(float), 16, 16, triangle)
        assert_close(found, wanted)
    assert len(set(boxes)) > 1


def inception(width, height, least, rng):
    """Sides (w, h) as arXiv:1409.4842 and torchvision draw them; None where ten tries fail."""
    for _ in range(10):
        area = rng.uniform(least, 1) * width * height
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if w <= width and h <= height:
            return w, h
    return None


def test_random_crops_are_spread_as_they_should_be(boxes):
    width, height, least, count = 300, 240, 0.2, 1500
    image, rng = Image.new("L", (width, height)), np.random.default_rng(2)
    for _ in range(count):
        transforms.random_crop(image, 1, rng, least)
    left, top, right, bottom = np.array(boxes).T
    assert min(left.min(), top.min()) >= 0
    assert right.max() <= width
    assert bottom.max() <= height
    w, h = right - left, bottom - top
    area, ratio = w * h / (width * height), w / h
    assert least - 0.01 < area.min()
    assert ratio.min() > 3 / 4 - 0.02
    assert ratio.max() < 4 / 3 + 0.02
    sides = [inception(width, height, least, rng) for _ in range(count)]
    others = np.array([side for side in sides if side]).T
    assert others.shape == (2, count)  # or the middle square would have to be counted too
    assert ks_2samp(area, others[0] * others[1] / (width * height)).pvalue > 0.01
    assert ks_2samp(ratio, others[0] / others[1]).pvalue > 0.01
    for start, room in ((left, width - w), (top, height - h)):  # uniform where there is room
        free = room > 20
        place = (start[free] + rng.random(free.sum())) / (room[free] + 1)
        assert kstest(place, "uniform").pvalue > 0.01


def test_random_crop_that_never_fits_is_the_middle(boxes):
    transforms.random_crop(Image.new("L", (200, 10)), 4, np.random.default_rng(0), 0.9)
    assert boxes == [(95, 0, 105, 10)]


@pytest.mark.parametrize("sides", [(1, 65), (65, 1), (2, 1000)])
def test_a_line_is_no_picture(sides):
    """Enlarged until its short side is `size`, it would fill the memory."""
    with pytest.raises(ValueError, match="pixels: the aspect ratio is too extreme"):
        transforms.centre_crop(Image.new("RGB", sides), 256)


# --- Decoding ---


def encoded(image, kind="PNG", **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def decoded(data, channels=3, **options):
    image = transforms.decode(data, channels, **options)
    assert image.mode == ("L" if channels == 1 else "RGB")
    return transforms.pixels(image)


def test_grey_and_colour():
    colour, grey = noise(7, 5), noise(7, 5, 1)
    np.testing.assert_array_equal(decoded(encoded(picture(colour))), colour)
    np.testing.assert_array_equal(decoded(encoded(picture(grey)), 1), grey)
    np.testing.assert_array_equal(decoded(encoded(picture(grey))), grey.repeat(3, 2))
    luma = colour @ [0.299, 0.587, 0.114]  # BT.601
    assert np.abs(decoded(encoded(picture(colour)), 1)[..., 0] - luma).max() < 1


def on_white(pixels, alpha):
    return pixels * (alpha / 255) + 255 * (1 - alpha / 255)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_pixels_lie_on_white(mode, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, len(mode)), np.uint8)
    pixels[0, :, -1], pixels[1, :, -1] = 0, 255
    found = decoded(encoded(Image.fromarray(pixels)), channels)
    wanted = on_white(pixels[..., :-1].astype(float), pixels[..., -1:])
    if mode == "RGBA" and channels == 1:
        wanted = wanted @ [[0.299], [0.587], [0.114]]
    assert np.abs(found - wanted).max() < 1.5
    np.testing.assert_array_equal(found[0], 255)


@pytest.mark.parametrize("transparent", [False, True])
def test_palettes(transparent):
    colours = np.array([[200, 10, 30], [0, 90, 250], [5, 5, 5]], np.uint8)
    which = np.random.default_rng(0).integers(0, 3, (6, 4), np.uint8)
    image = Image.fromarray(which, "P")
    image.putpalette(colours.tobytes())
    options = dict(transparency=bytes([255, 0, 128])) if transparent else {}
    wanted = colours[which].astype(float)
    if transparent:
        wanted = on_white(wanted, np.array([255, 0, 128])[which][..., None])
    assert np.abs(decoded(encoded(image, **options)) - wanted).max() <= 1


def test_one_colour_may_mean_transparent():
    """PNG's tRNS without an alpha channel."""
    pixels = np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8)
    found = decoded(encoded(Image.fromarray(pixels), transparency=(10, 20, 30)))
    np.testing.assert_array_equal(found, [[[255, 255, 255], [40, 50, 60]]])
    found = decoded(encoded(Image.fromarray(pixels[..., 0]), transparency=40), 1)
    np.testing.assert_array_equal(found[..., 0], [[10, 255]])


def test_one_bit():
    bits = np.random.default_rng(0).random((5, 11)) < 0.5
    found = decoded(encoded(Image.fromarray(bits)), 1)
    np.testing.assert_array_equal(found[..., 0], np.where(bits, 255, 0))


@pytest.mark.parametrize("channels", [1, 3])
def test_cmyk_jpeg(channels):
    """Adobe's are stored inverted."""
    colour = np.array([200, 60, 20])
    pixels = np.broadcast_to(colour, (16, 16, 3)).astype(np.uint8)
    data = encoded(Image.fromarray(pixels).convert("CMYK"), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "CMYK"
    wanted = colour if channels == 3 else colour @ [0.299, 0.587, 0.114]
    assert np.abs(decoded(data, channels) - wanted).max() < 5


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_rounded(kind):
    """All values there are; Pillow alone would clip them at 255."""
    values = np.arange(65536).astype(np.uint16).reshape(256, 256)
    data = encoded(Image.fromarray(values), kind)
    wanted = np.floor(values * (255 / 65535) + 0.5)
    np.testing.assert_array_equal(decoded(data, 1)[..., 0], wanted)
    np.testing.assert_array_equal(decoded(data)[..., 2], wanted)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.int32([[0, 70000], [1, 2]]), "signed numbers of 32 bits"),
        (np.ones((4, 4), "f4"), "floating"),
    ],
)
def test_numbers_that_are_no_grey_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        transforms.decode(encoded(Image.fromarray(values), "TIFF"), 1)


UPRIGHT = {  # EXIF's orientation: what has to be done to the rows and columns as they are stored
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_photographs_are_turned_upright(orientation):
    pixels, exif = noise(7, 4), Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(pixels), exif=exif)
    np.testing.assert_array_equal(decoded(data, upright=True), UPRIGHT[orientation](pixels))
    stored = decoded(data, upright=False)  # as ImageNet's readers take it
    np.testing.assert_array_equal(stored, pixels)


def test_a_jpeg_is_turned_upright():
    pixels, exif = np.zeros((16, 32, 3), np.uint8), Image.Exif()
    pixels[:, 16:] = 255  # the right half, which is below after a turn to the right
    exif[0x0112] = 6
    found = decoded(encoded(Image.fromarray(pixels), "JPEG", exif=exif), upright=True)
    assert found.shape == (32, 16, 3)
    assert found[20:].min() > 250 > 5 > found[:12].max()


def photograph(width, height):
    """Smooth, with edges, as photographs are."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    shapes = [np.sin(9 * x + 4 * y), np.hypot(x - 0.4, y - 0.5) < 0.3, x * y]
    pixels = np.stack([60 + 60 * shapes[0], 40 + 90 * shapes[1], 30 + 150 * shapes[2]], 2)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("width", "height"), [(640, 480), (487, 1023), (127, 300), (40, 33)])
def test_libjpeg_makes_large_photographs_smaller(width, height, orientation):
    """The most that leaves twice as many pixels as are asked for, and the crop stays the same."""
    size, exif = 16, Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photograph(width, height), "JPEG", quality=95, exif=exif)
    full = transforms.decode(data, 3, upright=True)
    small = transforms.decode(data, 3, upright=True, min_size=2 * size)
    factor = max(f for f in (1, 2, 4, 8) if f == 1 or min(full.size) >= f * 2 * size)
    assert small.size == tuple(-(-side // factor) for side in full.size)
    found, wanted = (transforms.centre_crop(image, size) for image in (small, full))
    assert np.abs(found.astype(int) - wanted).mean() < 2.5


def test_only_jpegs_are_made_smaller():
    data = encoded(photograph(640, 480))
    assert transforms.decode(data, 3, min_size=16).size == (640, 480)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_does_not_cost_the_picture():
    data = encoded(Image.fromarray(noise(16, 16)), "JPEG")
    broken = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x09\0\0\0\x01\xff\xff"
    segment = b"\xff\xe1" + struct.pack(">H", len(broken) + 2) + broken
    found = decoded(data[:2] + segment + data[2:], upright=True)
    np.testing.assert_array_equal(found, decoded(data))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_picture(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(decoded(data) - np.array([255.0, 0, 0])).max() < 3


def test_nothing_that_cannot_be_read_passes():
    jpeg = encoded(Image.fromarray(noise(64, 64)), "JPEG")
    for data in (b"", b"once upon a time", jpeg[: len(jpeg) // 2], jpeg[:10]):
        with pytest.raises((ValueError, OSError)):
            transforms.decode(data, 3)


def bomb(width, height):
    """A whole PNG of one bit per pixel, all of them black."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress(bytes((width // 8 + 1) * height), 9)
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch):
    data = bomb(2**14, 2**13 + 8)
    assert len(data) < 20_000
    with Image.open(io.BytesIO(data)) as image:
        assert image.width * image.height > pillow.MAX_PIXELS
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match="16384x8200 pixels are too many"):
        transforms.decode(data, 1)


def test_the_bound_of_pixels(monkeypatch):
    monkeypatch.setattr(pillow, "MAX_PIXELS", 80)
    assert decoded(bomb(8, 10), 1).shape == (10, 8, 1)
    with pytest.raises(ValueError, match="8x11 pixels are too many"):
        transforms.decode(bomb(8, 11), 1)


def test_no_program_is_run(monkeypatch):
    """Pillow gives PostScript to Ghostscript, whatever the file is called."""
    data = encoded(Image.fromarray(noise(8, 8)), "EPS")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("was run"))
    with pytest.raises(ValueError, match="cannot identify image: not an image, or unsupported"):
        transforms.decode(data, 3)


def samples():
    """(format, picture) of all that this Pillow can write and we read."""
    image, exif = Image.fromarray(noise(24, 20)), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a text"
    for kind in sorted(set(pillow.formats()) & set(Image.SAVE)):
        for mode in ("RGB", "L", "P"):
            try:
                yield kind, encoded(image.convert(mode), kind, exif=exif)
            except (OSError, ValueError):  # not this mode
                continue


@pytest.mark.filterwarnings("ignore")  # Pillow's
def test_damaged_files_are_refused_in_two_ways_only():
    """So that whoever catches ValueError and OSError meets every broken file."""
    rng, count = np.random.default_rng(0), 0
    for kind, data in samples():
        count += 1
        if kind in ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP"):
            assert sorted(transforms.decode(data, 3, upright=True).size) == [20, 24]
        for _ in range(25):
            other = bytearray(data[: rng.integers(len(data))] if rng.random() < 0.3 else data)
            for _ in range(rng.integers(0, 6)):
                if other:
                    other[rng.integers(min(len(other), 150))] = rng.integers(256)
            try:
                image = transforms.decode(bytes(other), 3, upright=True)
            except (ValueError, OSError):
                continue
            assert image.mode == "RGB"
    assert count > 20
