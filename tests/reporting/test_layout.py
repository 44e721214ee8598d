"""How images are laid out: no taller than a screen, nothing is lost, squares stay squares."""

import base64
import io
import itertools
import math

import numpy as np
import pytest
from PIL import Image

from vitdiff_jax.reporting import layout, page

RANDOM = np.random.default_rng(0)
PHONE, LAPTOP = (390, 844), (1280, 800)
SIZES = [(8, 8), (28, 28), (64, 64), (64, 48), (96, 96), (97, 97), (256, 256), (512, 300)]
WORDS = ["tench", "great white shark", "hammerhead", "electric ray", "hen", "cock"]


def names(count):
    return [f"{WORDS[i % 6]} {i}" for i in range(count)]


def heights(found, columns, rows, between):
    """Of the bands of a layout on top of each other, on a phone and on a laptop, by page.css."""
    gutter = 1 if max(found.size) <= 96 else 4
    down, right = (s + gutter for s in found.size)
    bands = math.ceil(len(found.picked) / found.per_band)
    words = 2 * 12 * 1.2 + 3.2 if any(columns) else 0  # two lines of .75 rem, .2 rem below
    for zoom, room in (
        (found.zoom.narrow, 358), (found.zoom.wide, 976 if found.full else 468)
    ):  # fmt: skip
        width = found.zoom.side + zoom * right * found.per_band
        assert width <= room + 1e-6
        line = max(1, int((room + between) // (width + between)))
        yield math.ceil(bands / line) * (zoom * found.rows * down + words)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 3, 10])
def test_no_layout_is_taller_than_a_screen(size, named, rows):
    """Of any number of columns, with room for a slider and a caption of two lines (140 pixels)."""
    for count, cut, wrap in itertools.product([1, 3, 10, 17, 100, 1000], [0, 1], [0, 1]):
        columns = names(count) if named else ()
        parts = () if cut else ("degraded", *["ddrm"] * (rows - 1))
        shape = count, rows, *size, 3
        found = layout.arrange(shape, columns, parts, cut=bool(cut), wrap=bool(wrap))
        between = 24 if named or parts else 0
        phone, laptop = heights(found, columns, parts, between)
        assert phone <= 0.8 * PHONE[1] - 100
        assert laptop <= 0.8 * LAPTOP[1] - 100
        assert found.rows == rows or (cut and found.rows < rows)
        assert found.picked == sorted(set(found.picked))
        assert len(found.picked) <= count
        if named:
            assert found.column_names == [columns[i] for i in found.picked]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_small_images_are_enlarged_by_integers(size):
    """Where they are enlarged: and as far as a person sees them."""
    found = layout.arrange((10, 10, *size, 1), list("0123456789"))
    for zoom in (found.zoom.narrow, found.zoom.wide):
        if max(size) <= 96:
            assert zoom == int(zoom) >= 1
        assert 40 <= zoom * max(found.size) <= 208


def test_columns_wrap_to_the_screen():
    """Bands of equal length, in order; a trajectory instead stays one, with both of its ends."""
    found = layout.arrange((10, 4, 8, 8, 1), list("0123456789"))
    assert (found.picked, found.per_band) == (list(range(10)), 5)
    found = layout.arrange((50, 4, 64, 64, 1), ["noise", *["→"] * 48, "image"], wrap=False)
    assert len(found.picked) == found.per_band < 10
    assert (found.picked[0], found.picked[-1]) == (0, 49)


def pixels(picture):
    with Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2]))) as file:
        return np.asarray(file)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_band_holds_each_image_and_gutters_are_transparent(channels):
    images = RANDOM.integers(0, 256, (7, 2, 8, 8, channels), np.uint8)
    cells = layout.columns([*images[:6], images[6, :1]])  # the last has one image only
    found = layout.arrange(cells.shape, names(7))
    frame = layout.frame(found, cells[found.picked, : found.rows], "seven", "step 3")
    shown, seen = iter(range(7)), 0
    for band in frame.bands:
        sheet = pixels(band.picture).reshape(18, -1, channels + 1)
        assert (band.picture.width, band.picture.height) == (sheet.shape[1], 18)
        free = np.ones(sheet.shape[:2], bool)
        for column in range(len(band.columns)):
            group = next(shown)
            for row in range(2):
                place = np.s_[9 * row : 9 * row + 8, 9 * column : 9 * column + 8]
                if (group, row) != (6, 1):
                    np.testing.assert_array_equal(sheet[place][..., :-1], images[group, row])
                    assert (sheet[place][..., -1] == 255).all()
                    free[place], seen = False, seen + 1
        assert (sheet[free][:, -1] == 0).all()
    assert seen == 13
    assert [name for band in frame.bands for name in band.columns] == names(7)


def test_a_photograph_is_scaled():
    cells = layout.opaque(np.full((2, 1, 400, 300, 3), 77, np.uint8))
    found = layout.arrange(cells.shape)
    assert found.size == (192, 144)
    (band,) = layout.frame(found, cells, "two").bands
    assert not band.picture.pixelated
    assert pixels(band.picture).shape[:2] == (196, 296)
    assert (pixels(band.picture)[:192, :144] == (77, 77, 77, 255)).all()


@pytest.mark.parametrize(
    ("width", "height", "narrow", "wide"),
    [(8, 8, 40, 40), (8, 24, 13, 13), (100, 30, 3, 3), (300, 60, 1, 1),
     (1200, 300, 358 / 1200, 0.39), (500, 1000, 0.52, 0.5), (450, 450, 358 / 450, 1)],
)  # fmt: skip
def test_a_picture_alone(width, height, narrow, wide):
    """By integers up to 320 pixels; what is larger than the screen is made smaller."""
    found = layout.single(page.picture(np.zeros((height, width, 1), np.uint8), "one"))
    assert (found.narrow, found.wide) == pytest.approx((narrow, wide))
