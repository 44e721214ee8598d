"""Masks: what was painted is missing, from whatever file or array; what is ambiguous is refused."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.runtime.picture_files import png, saved, tiff, tifffiles
from vitdiff_jax.operators import make, masks

BOX = np.zeros((6, 9), bool)
BOX[1:3, 2:7] = True
FLAT = BOX[..., None].astype(np.uint8)


def layer(colour, clear):
    """Painted on a transparent layer: opaque in the box, and the colour of what is not painted."""
    return np.where(BOX[..., None], [*colour, 255], [*clear, 0]).astype(np.uint8)


def palette(**options):
    image = Image.fromarray(FLAT[..., 0], "P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    return saved(image, **options)


def turned(orientation, kind="PNG"):
    """As a camera or phone stores it."""
    stored = {1: BOX, 3: BOX[::-1, ::-1], 6: np.rot90(BOX), 8: np.rot90(BOX, -1)}[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.fromarray(stored.astype(np.uint8) * 255)
    return saved(image, kind, exif=exif)


FILES = {
    "white on black": saved(FLAT * 255),
    "one bit": png(FLAT, 1, 0),
    "zero and one": saved(FLAT),
    "zero and one of 2 bits": png(FLAT, 2, 0),
    "zero and one of 4 bits": png(FLAT, 4, 0),
    "zero and one of 12 bits": tiff(FLAT.astype(np.uint16), 12),
    "zero and one of 16 bits": saved(FLAT.astype(np.uint16)),
    "zero and one of 32 bits": tifffiles(FLAT.astype(np.uint32)),
    "zero and one in colours": saved(FLAT.repeat(3, -1)),
    "0 and 255 of 16 bits": saved(FLAT.astype(np.uint16) * 255),
    "dark grey of 16 bits": saved(np.where(FLAT, 65535, 1000).astype(np.uint16)),
    "not quite white": saved(np.where(FLAT, 200, 90).astype(np.uint8)),
    "just above one half": saved(np.where(FLAT, 128, 127).astype(np.uint8)),
    "bright on dark": saved(np.where(FLAT, [200, 200, 90], [120, 10, 90]).astype(np.uint8)),
    "white counted from white": tiff((1 - FLAT) * 255, 8, 0),
    "white layer": saved(layer([255] * 3, [255] * 3)),
    "red strokes": saved(layer([255, 0, 0], [0] * 3)),
    "black strokes": saved(layer([0] * 3, [255] * 3)),
    "grey layer": saved(layer([9] * 3, [255] * 3)[..., [0, 3]]),
    "soft strokes": saved((layer([0] * 3, [0] * 3) * 0.6 + 50).astype(np.uint8)),
    "opaque layer": saved(np.concatenate([FLAT.repeat(3, -1) * 255, FLAT * 0 + 255], -1)),
    "one colour is transparent": saved(FLAT * 255, transparency=0),
    "palette": palette(),
    "palette with a transparent colour": palette(transparency=0),
    "floats": tifffiles(FLAT.astype(np.float32)),
    "soft floats": tifffiles((FLAT * 0.4 + 0.3).astype(np.float32)),
    "turned by 180": turned(3), "turned right": turned(6), "turned left": turned(8),
    "turned in TIFF": tiff(np.rot90(FLAT) * 255, 8, t274=[6]),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files(tmp_path, name):
    (tmp_path / "mask").write_bytes(FILES[name])
    found = masks.of(tmp_path / "mask")
    np.testing.assert_array_equal(found, BOX, strict=True)
    opened = Image.open(io.BytesIO(FILES[name])) if "12 bits" not in name else None
    if opened:
        np.testing.assert_array_equal(masks.of(opened), BOX, strict=True)


ARRAYS = {
    "bool": lambda a: a,
    "uint8": lambda a: a.astype(np.uint8),
    "uint8, 255": lambda a: a.astype(np.uint8) * 255,
    "uint8, soft": lambda a: np.where(a, 250, 3).astype(np.uint8),
    "int64": lambda a: a.astype(int),
    "int64, 255": lambda a: a.astype(int) * 255,
    "uint16, 65535": lambda a: a.astype(np.uint16) * 65535,
    "float64": lambda a: a.astype(float),
    "float16, soft": lambda a: np.where(a, 0.9, 0.2).astype(np.float16),
    "float32, rounded up": lambda a: np.nextafter(a.astype(np.float32), np.float32(2)),
    "nested lists": lambda a: a.tolist(),
    "nested lists of 0 and 1": lambda a: a.astype(int).tolist(),
    "jax": jnp.asarray,
    "bfloat16": lambda a: jnp.asarray(a, jnp.bfloat16),
    "PIL": lambda a: Image.fromarray(a),
    "PIL, 255": lambda a: Image.fromarray(a.astype(np.uint8) * 255),
    "PIL, floats": lambda a: Image.fromarray(a.astype(np.float32)),
    "PIL, 32 bits": lambda a: Image.fromarray(a.astype(np.int32)),
    "PIL, 32 bits, 255": lambda a: Image.fromarray(a.astype(np.int32) * 255),
    "[H, W, 1]": lambda a: a[..., None],
    "[H, W, 1] of floats": lambda a: a[..., None].astype(np.float32),
    "[H, W, 3]": lambda a: a[..., None].repeat(3, -1),
    "[H, W, 4]": lambda a: layer([255, 0, 0], [0, 0, 0]),
    "backwards in memory": lambda a: np.asfortranarray(a.astype(np.uint8)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_all_mean_the_same(name):
    np.testing.assert_array_equal(masks.of(ARRAYS[name](BOX)), BOX, strict=True)


PHOTO = np.random.default_rng(0).integers(0, 256, (30, 40, 4), np.uint8)
PHOTO[..., 3] = 255
HOLED = PHOTO.copy()
HOLED[5:9, 5:9, 3] = 0
PRINT = np.concatenate([FLAT.repeat(3, -1) * 255, 1 - (FLAT & (np.arange(9) > 4)[:, None])], -1)
COLOURED = np.where(FLAT, [1, 0, 0], [0, 0, 0])
REFUSED = {
    "several values": (BOX * 7, "values from 0 to 7"),
    "a map of labels": (np.arange(54, dtype=np.uint8).reshape(6, 9) % 8, "from 0 to 7 of 255"),
    "labels and a border": (np.uint8([[0, 1, 255]] * 2), "255 and values up to 1, .* below 128"),
    "labels without a background": (np.uint8([[5, 255]] * 2), "only 255 and values up to 5, as a"),
    "negative": (-BOX.astype(int), "values from -1 to 0"),
    "-1 and 1": (BOX * 2 - 1, "values from -1 to 1"),
    "-1 and 1 as floats": (BOX * 2.0 - 1, "values from -1 to 1"),
    "floats to 255": (BOX * 255.0, "values from 0 to 255"),
    "NaN": (np.where(BOX, np.nan, 0), "not finite"),
    "three that differ": (COLOURED, "three channels that differ"),
    "complex": (BOX * 1j, "complex128"),
    "a masked array": (np.ma.masked_array(BOX, BOX), "a masked array; give what it masks"),
    "texts": (np.array([["a"]]), "of type <U1"),
    "ragged lists": ([[0, 1], [1]], "not an array"),
    "one number": (1, "of shape"),
    "one row": (BOX[0], r"of shape \(9,\)"),
    "channels first": (BOX[None], r"of shape \(1, 6, 9\)"),
    "a batch": (BOX[None, ..., None], r"of shape \(1, 6, 9, 1\)"),
    "nothing there": (np.zeros((0, 4)), "of shape"),
    "nothing marked": (BOX & False, "marks no pixel"),
    "all marked": (BOX | True, "marks every pixel as missing.*--mode=sample"),
    "a photograph with a hole": (HOLED, "a picture with transparent parts"),
    "a small one": (HOLED[4:12, 4:12], "a picture with transparent parts"),
    "a grey one": (HOLED[..., [0, 3]][3:12, 3:12], "a picture with transparent parts"),
    "a grey one in colours": (HOLED[..., [0, 0, 0, 3]], "a picture with transparent parts"),
    "black and white with a hole": (
        (PRINT * [1, 1, 1, 255]).astype(np.uint8),
        "is black and white with transparent parts",
    ),
    "all clear": (layer([0] * 3, [0] * 3) * [1, 1, 1, 0], "marks no pixel"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_ambiguous_or_marks_nothing_is_one_line(name):
    mask, words = REFUSED[name]
    mask = mask.astype(np.uint8) if name == "all clear" else mask
    with pytest.raises(ValueError, match=words) as caught:
        masks.of(mask)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"?", "not a readable image"), (saved(FLAT * 0), "marks no pixel"),
     (saved(FLAT * 0 + 255), "marks every pixel"), (saved(FLAT * 7), "from 0 to 7 of 255"),
     (tifffiles(FLAT * np.float32(255)), "from 0 to 255"),
     (tifffiles(FLAT.astype(np.int16)), "signed")],
    ids=["no picture", "none", "all", "dark", "floats to 255", "signed"],
)  # fmt: skip
def test_files_that_are_no_masks_are_named(tmp_path, data, words):
    (tmp_path / "mask.png").write_bytes(data)
    with pytest.raises(ValueError, match=rf"mask\.png: .*{words}"):
        masks.of(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=r"none\.png: not a readable image: No such file"):
        masks.of(tmp_path / "none.png")


def test_another_size_is_refused_with_both():
    assert masks.fitted(BOX, (6, 9, 3)) is BOX
    with pytest.raises(ValueError, match=r"the mask has 9x6 pixels, the image 9x7$"):
        masks.fitted(BOX, (7, 9, 3))
    with pytest.raises(ValueError, match="9x6 pixels, the image 6x9; one of them is turned"):
        masks.fitted(BOX, (9, 6, 1))


def test_the_operator_reads_by_the_same_rules(tmp_path):
    (tmp_path / "mask.png").write_bytes(FILES["red strokes"])
    options = {"kind": "file", "path": str(tmp_path / "mask.png")}
    operator = make("mask", (6, 9, 3), np.random.default_rng(0), **options)
    np.testing.assert_array_equal(operator.known[..., 0], 1 - BOX)
    with pytest.raises(ValueError, match="9x6 pixels, the image 9x9"):
        make("mask", (9, 9, 3), np.random.default_rng(0), **options)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_kernels_are_read_with_all_bits(tmp_path, kind):
    """Pillow would clip 16 bits at 255."""
    kernel = np.array([[0, 1, 0], [1, 6, 1], [0, 1, 0]]) / 10
    most = 1 if kind == np.float32 else np.iinfo(kind).max // 6
    (tmp_path / "k.tif").write_bytes(tifffiles((kernel[..., None] * 10 * most).astype(kind)))
    operator = make("blur", (8, 8, 1), np.random.default_rng(0), kind="file",
                    path=str(tmp_path / "k.tif"))  # fmt: skip
    x = np.zeros((1, 8, 8, 1), np.float32)
    x[0, 4, 4] = 1
    np.testing.assert_allclose(operator.forward(x)[0, 3:6, 3:6, 0], kernel, atol=1e-6)
