"""Pictures and noise from Python: every way to hold the same picture, and what is no picture."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.runtime.picture_files import png16
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import arrays

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (12, 10, 3), np.uint8)
X = PIXELS / 127.5 - 1
GREY = PIXELS[..., :1]


@pytest.fixture
def said(monkeypatch):
    """The lines on the terminal."""
    lines = []
    monkeypatch.setattr(arrays.logs, "say", lines.append)
    return lines


WAYS = {
    "uint8": lambda path: PIXELS,
    "uint16": lambda path: PIXELS.astype(np.uint16) * 257,
    "float32": lambda path: X.astype(np.float32),
    "float64": lambda path: X,
    "lists": lambda path: X.tolist(),
    "jax": lambda path: jnp.asarray(X, jnp.float32),
    "jax, uint8": lambda path: jnp.asarray(PIXELS),
    "PIL": lambda path: Image.fromarray(PIXELS),
    "path": lambda path: path,
    "path as text": str,
}


@pytest.mark.parametrize("name", WAYS)
def test_a_picture_is_the_same_in_every_way(tmp_path, said, name):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    found = arrays.picture(WAYS[name](tmp_path / "a.png"))
    assert (found.shape, found.dtype) == (PIXELS.shape, np.float32)
    np.testing.assert_allclose(found, X, atol=1e-6)
    assert said == []


@pytest.mark.parametrize("as_image", [False, True])
def test_files_come_with_all_bits_and_upright(tmp_path, as_image):
    wide, exif = RANDOM.integers(0, 2**16, (4, 6, 3), np.uint16), Image.Exif()
    exif[274] = 6
    (tmp_path / "a.png").write_bytes(png16(wide, (b"eXIf", exif.tobytes()[6:])))
    image = Image.open(tmp_path / "a.png") if as_image else tmp_path / "a.png"
    np.testing.assert_allclose(arrays.picture(image), np.rot90(wide, -1) / 32767.5 - 1, atol=1e-6)


def test_grey_without_and_with_an_axis():
    for image in (GREY, GREY[..., 0], Image.fromarray(GREY[..., 0])):
        np.testing.assert_allclose(arrays.picture(image), GREY / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("noise_std", [None, 0.0, 0.3, 1.0])
def test_noise_may_leave_the_range(said, noise_std):
    """As it does in a measurement; so may the overshoot of bicubic resizing."""
    noisy = X + RANDOM.normal(size=X.shape) * (noise_std or 0.05)
    np.testing.assert_allclose(arrays.picture(noisy, noise_std), noisy, rtol=1e-6)
    assert said == []


REFUSED = {
    "bool": (X > 0, "of type bool"),
    "int64": (PIXELS.astype(int), "of type int64; pass uint8"),
    "int8": (PIXELS.astype(np.int8), "of type int8"),
    "uint32": (PIXELS.astype(np.uint32), "of type uint32"),
    "complex": (X * 1j, "of type complex128"),
    "objects": (np.array([[None]]), "of type object"),
    "texts": (np.array([["a"]]), "of type <U1"),
    "NaN": (np.where(X > 0, np.nan, X), "not finite"),
    "infinite": (np.where(X > 0.5, np.inf, X), "not finite"),
    "[0, 1]": ((X + 1) / 2, r"\[0, 1\] is scaled to \[-1, 1\] by 2 \* x - 1"),
    "[0, 1] of jax": (jnp.asarray((X + 1) / 2), r"2 \* x - 1"),
    "[0, 255]": (PIXELS.astype(float), "x / 127.5 - 1"),
    "dark [0, 255]": (PIXELS.astype(np.float32) % 12, "x / 127.5 - 1"),
    "[0, 255] with noise": (PIXELS + RANDOM.normal(size=X.shape) * 20, "x / 127.5 - 1"),
    "[-128, 127]": (PIXELS - 128.0, "x / 127.5 - 1"),
    "masked": (np.ma.array(X, mask=X > 0.5), r"mask=np\.ma\.getmask"),
    "alpha": (np.zeros((4, 4, 4), np.uint8), "leave out alpha"),
    "grey with alpha": (np.zeros((4, 4, 2), np.uint8), "leave out alpha"),
    "channels first": (np.moveaxis(PIXELS, -1, 0), "channels come last"),
    "a batch": (PIXELS[None], "one picture at a time"),
    "a row": (PIXELS[0, :, 0], r"of shape \(10,\)"),
    "five bands": (np.zeros((4, 4, 5)), r"of shape \(4, 4, 5\)"),
    "nothing": (np.zeros((0, 4, 3)), r"of shape \(0, 4, 3\)"),
    "ragged lists": ([[0.0, 1.0], [1.0]], "not an array"),
    "a float picture of PIL": (Image.fromarray(np.float32(PIXELS[..., 0])), "x / 127.5 - 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_one_line(name):
    image, words = REFUSED[name]
    with pytest.raises(ConfigError, match=f"^image: .*{words}") as caught:
        arrays.picture(image)
    assert "\n" not in str(caught.value)


def test_more_noise_than_was_said():
    with pytest.raises(ConfigError, match=r"does not fit \[-1, 1\] with noise of 0.1"):
        arrays.picture(X + RANDOM.normal(size=X.shape), 0.1)


def test_a_bright_picture_has_a_way(said):
    """Which the refusal names: as 16 bits, or in a file; and with noise it is only doubted."""
    bright = 0.2 + (X + 1) / 4
    with pytest.raises(ConfigError) as caught:
        arrays.picture(bright)
    code = str(caught.value).partition("uint16, by ")[2]
    wide = eval(code, {"np": np, "x": bright})
    np.testing.assert_allclose(arrays.picture(wide), bright, atol=2e-5)
    assert said == []
    arrays.picture(bright + RANDOM.normal(size=X.shape) * 0.2, 0.2)
    (line,) = said
    assert "image: " in line
    assert "hardly any is dark" in line


def test_values_beyond_the_range_without_a_noise_level_are_said(said):
    """They may as well be standardised by a mean and deviation."""
    arrays.picture(2.2 * X)
    (line,) = said
    assert "taken for noise" in line


def test_doubts_are_one_line(tmp_path, said):
    arrays.picture(PIXELS.astype(np.uint16))
    clear = np.concatenate([PIXELS, GREY], -1)
    Image.fromarray(clear).save(tmp_path / "a.png")
    for image in (tmp_path / "a.png", Image.fromarray(clear)):
        np.testing.assert_allclose(arrays.picture(image), X, atol=1e-6)
    assert ["8 bits are uint8" in said[0], *("without alpha" in line for line in said[1:])] == [
        True, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize("noise", [None, 0, 0.1, 2, np.float32(0.5), np.int64(1)])
def test_noise_levels(noise):
    arrays.check_noise(noise)


@pytest.mark.parametrize(
    ("noise", "words"),
    [(-0.1, "-0.1 is not"), (np.nan, "nan is not"), (np.inf, "inf is not"), (True, "True is not"),
     ("0.1", "'0.1' is not"), (25, r"is \[-1, 1\]; 25 of 255 is 0.196"), (2.01, "more than")],
)  # fmt: skip
def test_noise_levels_that_are_none(noise, words):
    with pytest.raises(ConfigError, match=f"^--noise: .*{words}"):
        arrays.check_noise(noise, "--noise")
