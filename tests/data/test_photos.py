"""Photos: what was restored goes out in the kind of the file; coming in: test_picture.py."""

import numpy as np
import pytest

from tests.runtime.picture_files import some
from vitdiff_jax.data import photos
from vitdiff_jax.data.pipeline import DataError

HEIGHT, WIDTH = 5, 7


def photo(samples, name="photo.png"):
    """Of samples [H, W, 1 to 4], alpha last."""
    colours = 1 if samples.shape[-1] < 3 else 3
    alpha = samples[..., colours:]
    return photos.Photo(name, samples[..., :colours], alpha if alpha.size else None)


def x_of(samples):
    """Colours in [-1, 1]."""
    colours = 1 if samples.shape[-1] < 3 else 3
    return samples[..., :colours] / float(np.iinfo(samples.dtype).max) * 2 - 1


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_what_is_not_changed_comes_back(channels, bits):
    samples = some(channels, bits)
    found = photos.encode(photo(samples), x_of(samples))
    np.testing.assert_array_equal(found, samples, strict=True)


@pytest.mark.parametrize("bits", [8, 16])
def test_every_value_comes_back(bits):
    """Through float32: 65,536 values fit between -1 and 1."""
    samples = np.arange(2**bits, dtype=f"uint{bits}").reshape(-1, 2 ** (bits // 2), 1)
    found = photos.encode(photo(samples), x_of(samples).astype(np.float32))
    np.testing.assert_array_equal(found, samples, strict=True)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_larger_result_has_its_alpha_resized(bits):
    """Bicubic, with all bits: a ramp stays one, and does not leave its range."""
    samples = some(4, bits, 8, 8)
    most = 2**bits - 1
    samples[..., 3] = np.linspace(0, most, 8)
    found = photos.encode(photo(samples), np.zeros((32, 32, 3)))
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


@pytest.mark.parametrize("bits", [8, 16])
def test_results_are_rounded_and_clipped(bits):
    x = np.array([-1.01, -1, -1 + 0.4 * 2 / (2**bits - 1), 0.99999999, 1.2])
    found = photos.encode(photo(some(1, bits)), x[None, :, None])[0, :, 0]
    np.testing.assert_array_equal(found, [0, 0, 0, 2**bits - 1, 2**bits - 1])


def test_grey_may_become_colours():
    """Colourising: the alpha is still the photo's."""
    samples = some(2, 16)
    x = np.random.default_rng(0).uniform(-1, 1, (HEIGHT, WIDTH, 3))
    found = photos.encode(photo(samples), x)
    assert found.dtype == np.uint16
    np.testing.assert_allclose(found[..., :3], (x + 1) / 2 * 65535, atol=0.51)
    np.testing.assert_array_equal(found[..., 3], samples[..., 1])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_results_that_are_no_numbers_are_refused(value):
    x = np.zeros((HEIGHT, WIDTH, 3))
    x[1, 2, 0] = value
    with pytest.raises(ValueError, match=r"^cat\.png: the restored pixels are not finite"):
        photos.encode(photo(some(3), "cat.png"), x)


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


def test_files_that_are_not_there_or_too_large(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"none\.png"):
        photos.read(tmp_path / "none.png")
    with pytest.raises(DataError, match=str(tmp_path)):
        photos.read(tmp_path)
    monkeypatch.setattr("vitdiff_jax.data.files.MAX_BYTES", 10)
    (tmp_path / "a.png").write_bytes(bytes(11))
    with pytest.raises(DataError, match="larger than 10 bytes"):
        photos.read(tmp_path / "a.png")
