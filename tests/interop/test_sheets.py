"""Sheets of images: what is written comes back, and the picture is one that anybody can open."""

import json

import numpy as np
import pytest
from PIL import Image

from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.interop import sheets

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (5, 9), (64, 50)])
@pytest.mark.parametrize(
    ("kind", "count", "parts", "columns"),
    [("samples", 7, 1, 3), ("nearest", 5, 2, 2), ("restored", 4, 3, 1), ("trajectories", 2, 6, 1)],
)
def test_a_sheet_comes_back(tmp_path, kind, count, parts, columns, size, channels):
    images = RANDOM.integers(0, 256, (count, parts, *size, channels), np.uint8)
    names, about = [f"Größe {i}" for i in range(count)], {"step": 3, "prompt": "a “cat”\n"}
    path = tmp_path / "a.png"
    sheets.write(path, sheet := sheets.Sheet(kind, images, columns, names, about))
    found = sheets.read(path)
    np.testing.assert_array_equal(found.images, images)
    assert (found.kind, found.columns, found.names, found.about) == (kind, columns, names, about)
    with Image.open(path) as file:
        pixels = np.asarray(file).reshape(sheet.pixels.shape)
    np.testing.assert_array_equal(pixels, sheet.pixels)


def test_the_parts_of_an_example_lie_side_by_side(tmp_path):
    """A gutter only between examples; between the images of a trajectory too."""
    images = RANDOM.integers(0, 255, (2, 3, 48, 48, 1), np.uint8)
    pixels = sheets.Sheet("restored", images, 1).pixels
    np.testing.assert_array_equal(pixels[2:50, 2:146], np.concatenate(images[0], 1))
    np.testing.assert_array_equal(pixels[52:100, 2:146], np.concatenate(images[1], 1))
    pixels = sheets.Sheet("trajectories", images).pixels
    for i in range(3):
        np.testing.assert_array_equal(pixels[2:50, 2 + 50 * i : 50 + 50 * i], images[0, i])


def test_other_pictures_say_nothing(tmp_path):
    image_lib.save_png(tmp_path / "a.png", np.zeros((9, 9, 3), np.uint8), text={"Author": "me"})
    assert sheets.read(tmp_path / "a.png") is None
    Image.new("RGB", (9, 9)).save(tmp_path / "a.jpg")
    assert sheets.read(tmp_path / "a.jpg") is None


@pytest.mark.parametrize(
    "text",
    ["[]", "{", "3", json.dumps({"shape": [2, 1, 8], "columns": 1}),
     json.dumps(dict(kind="samples", shape=[9, 1, 8, 8], columns=2, names=[], about={}))],
)  # fmt: skip
def test_what_the_file_cannot_be_is_a_value_error(tmp_path, text):
    path = tmp_path / "a.png"
    image_lib.save_png(path, np.zeros((52, 52, 1), np.uint8), text={sheets.KEY: text})
    with pytest.raises(ValueError):  # noqa: PT011
        sheets.read(path)
