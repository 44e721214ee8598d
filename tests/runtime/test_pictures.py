"""One reader: what is trained on is what is restored, and both are the pixels that were written.

The pixels are known; files are written by Pillow, by tifffile, or byte by byte here where neither
can. TIFF files that tifffile reads are compared with its reading, too.
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
from vitdiff_jax.runtime import pictures, pillow

RANDOM = np.random.default_rng(0)
HEIGHT, WIDTH = 5, 7
CHANNELS = {"grey": 1, "grey with alpha": 2, "colours": 3, "colours with alpha": 4}
WHITE, GREY, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8


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


@pytest.fixture
def assert_is(tmp_path):
    """A file is these samples, uint8 or uint16 [H, W, 1 to 4]: restored, trained on, announced."""

    def check(data, samples, error=0):
        (tmp_path / "photo").write_bytes(data)
        photo = photos.read(tmp_path / "photo")
        found = [photo.colours] + ([] if photo.alpha is None else [photo.alpha])
        found = np.concatenate(found, -1)
        assert (found.shape, found.dtype) == (samples.shape, samples.dtype)
        assert np.abs(found.astype(int) - samples).max() <= error
        colours = photo.colours.shape[-1]
        trained = transforms.pixels(transforms.decode(data, None))
        assert trained.shape == (*samples.shape[:2], colours)
        assert np.abs(trained - on_white(found)).max() <= 0.5 + 1e-9
        for channels in (1, 3):
            one = transforms.pixels(transforms.decode(data, channels))
            wanted = (
                trained
                if channels == 3
                else trained @ np.array([0.299, 0.587, 0.114])[:, None]
                if colours == 3
                else trained
            )
            assert one.shape[-1] == channels
            assert np.abs(one - wanted).max() < 1
        assert pictures.shape(data) == (*samples.shape[:2], colours)

    return check


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


# --- TIFF ---


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


# --- What cannot be read rightly ---


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
