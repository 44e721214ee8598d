"""Files of several pictures: the first is read, and every reader says so; no mask is among them."""

import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from vitdiff_jax.data import folder, image_files, listing, photos
from vitdiff_jax.data.pipeline import DataError
from vitdiff_jax.inference import arrays
from vitdiff_jax.modes import restore
from vitdiff_jax.operators import blur, masks
from vitdiff_jax.runtime import pictures

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3), np.uint8)
SEVERAL = {"GIF": "gif", "WEBP": "webp", "PNG": "png", "TIFF": "tif"}


def saved(kind, count=2, **options):
    first, *others = (Image.fromarray(pixels) for pixels in PIXELS[:count])
    file = io.BytesIO()
    first.save(file, kind, save_all=True, append_images=others, **options)
    return file.getvalue()


def tiff(*pages, **options):
    """pages: {option of a page: value}."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file, **options) as writer:
        for about in pages:
            writer.write(PIXELS[0], photometric="rgb", metadata=None, **about)
    return file.getvalue()


@pytest.mark.parametrize("kind", SEVERAL)
def test_frames_and_pages_are_counted(kind):
    assert pictures.count(saved(kind)) == 2
    assert pictures.count(saved(kind, count=1)) == 1
    first = pictures.read(saved(kind)).colours.astype(int)
    assert np.abs(first - PIXELS[0]).mean() < np.abs(first - PIXELS[1]).mean()


@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"byteorder": ">"}])
def test_previews_and_masks_are_no_pages(options):
    assert pictures.count(tiff({}, {}, {}, **options)) == 3
    assert pictures.count(tiff({}, {"subfiletype": 1}, {"subfiletype": 9}, **options)) == 1


def test_what_a_phone_appends_is_no_picture():
    assert pictures.count(saved("MPO")) == 1
    assert ".mpo" in listing.suffixes()


def test_a_chain_of_pages_that_leads_nowhere_or_back():
    data = bytearray(tiff({}))
    (at,) = struct.unpack_from("<I", data, 4)
    (tags,) = struct.unpack_from("<H", data, at)
    for place in (at, len(data) + 9, 3):
        struct.pack_into("<I", data, at + 2 + 12 * tags, place)
        assert pictures.count(bytes(data)) == 1


def test_inks_are_said_by_every_reader(home, capsys):
    (home / "stack.tif").unlink()
    Image.fromarray(PIXELS[0]).convert("CMYK").save(home / "inks.jpg")
    (line,) = folder.dataset(str(home), size=8).card["warnings"]
    assert line == "1 file in CMYK, converted to RGB as ideal inks: inks.jpg"
    assert "(CMYK as RGB: inks.jpg)" in image_files.open_images(home, "--samples").origin
    for given in (str(home / "inks.jpg"), Image.open(home / "inks.jpg")):
        capsys.readouterr()
        arrays.picture(given)
        assert capsys.readouterr().out.startswith("warning: image: CMYK, converted to RGB")
    assert photos.read(home / "inks.jpg").inks
    about = {"task": "denoise", "method": "ddrm", "seconds": 1.0, "memory": 1, "cmyk": True}
    assert "x.png: CMYK as RGB, denoise by" in restore._line(home / "x.jpg", home / "x", about)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.fromarray(PIXELS[0] + np.uint8(i)).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "stack.tif").write_bytes(saved("TIFF"))
    return tmp_path / "photos"


def test_training_says_it_and_keeps_it(home):
    for _ in range(2):  # examined, and known
        (line,) = folder.dataset(str(home), size=8).card["warnings"]
        assert line == "1 file of several frames or pages, the first is read: stack.tif"


def test_evaluation_says_it(home):
    origin = image_files.open_images(home, "--samples").origin
    assert "(of several frames or pages the first: stack.tif)" in origin


def test_what_a_file_is_instead_is_said(home):
    (home / "stack.tif").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError, match=r"stack\.tif: a Git LFS pointer"):
        image_files.open_images(home, "--samples")
    with pytest.raises(DataError, match=r"stack\.tif: a Git LFS pointer"):
        photos.read(home / "stack.tif")
    with pytest.raises(DataError, match=r"none\.png: No such file"):
        photos.read(home / "none.png")


def test_restoring_says_it(home, capsys):
    photo = photos.read(home / "stack.tif")
    assert photo.count == 2
    about = {"task": "denoise", "method": "ddrm", "seconds": 1.0, "memory": 1}
    line = restore._line(home / "stack.tif", home / "stack", about | {"first_of": photo.count})
    assert "stack.png: the first of 2 frames or pages, denoise by" in line


@pytest.mark.parametrize("given", [str, Image.open])
def test_restoring_from_python_says_it(home, given, capsys):
    arrays.picture(given(home / "stack.tif"))
    assert "the first of 2 frames or pages" in capsys.readouterr().out


def test_a_page_that_was_sought_is_the_one(home, capsys):
    image = Image.open(home / "stack.tif")
    image.seek(1)
    x = arrays.picture(image)
    np.testing.assert_allclose(x, PIXELS[1] / 127.5 - 1, atol=1e-6)
    assert "first of" not in capsys.readouterr().out


def test_a_mask_or_kernel_is_one_picture(home):
    for given in (str(home / "stack.tif"), Image.open(home / "stack.tif")):
        with pytest.raises(ValueError, match="holds 2 frames or pages"):
            masks.of(given)
    with pytest.raises(ValueError, match="holds 2 frames or pages"):
        blur.read(home / "stack.tif")
