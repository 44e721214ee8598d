"""Operators against independent implementations and their definitions in the papers."""

import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy import ndimage

from tests.parts import only
from vitdiff_jax import operators
from vitdiff_jax.operators.jpeg import tables
from vitdiff_jax.runtime import pictures

RANDOM = np.random.default_rng(0)


def make(name, shape, seed=0, **options):
    return operators.make(name, shape, np.random.default_rng(seed), **options)


apply = jax.jit(lambda operator, x: operator.forward(x))


def forward(operator, image):
    """One image through it."""
    return np.asarray(apply(operator, np.asarray(image, np.float32)[None]))[0]


@pytest.fixture(scope="module")
def photo():
    """Part of scikit-image's astronaut, uint8 [200, 203, 3]: no multiple of 8 or 16."""
    data = pytest.importorskip("skimage.data")
    return data.astronaut()[:200, :203]


@pytest.mark.parametrize(
    ("quality", "subsampling"),
    only([(10, "420"), (90, "444")], itertools.product([5, 10, 50, 90], ["444", "420"])),
)
def test_jpeg_is_pillows(photo, quality, subsampling):
    """But for libjpeg's integer arithmetic, half a grey level on average; its tables exactly."""
    file = io.BytesIO()
    Image.fromarray(photo).save(
        file, "JPEG", quality=quality, subsampling={"444": 0, "420": 2}[subsampling]
    )
    with Image.open(file) as coded:
        wanted = np.asarray(coded, float)
        first, second = coded.quantization[0], coded.quantization[1]
    for table, found in zip((first, second), tables(quality)):
        np.testing.assert_array_equal(np.sort(table), np.sort(found.ravel()))
    operator = make("jpeg", photo.shape, quality=quality, subsampling=subsampling)
    found = (forward(operator, photo / 127.5 - 1) + 1) * 127.5
    assert abs(found - wanted).mean() < 0.6
    degradation = abs(photo - wanted).mean()
    assert abs(found - wanted).mean() < 0.3 * degradation


def test_jpeg_of_grey(photo):
    grey = photo[..., :1]
    file = io.BytesIO()
    Image.fromarray(grey[..., 0]).save(file, "JPEG", quality=20)
    with Image.open(file) as coded:
        wanted = np.asarray(coded, float)[..., None]
    found = (forward(make("jpeg", grey.shape, quality=20), grey / 127.5 - 1) + 1) * 127.5
    assert abs(found - wanted).mean() < 0.3


def test_jpeg_of_a_turned_picture_has_the_blocks_of_the_file(photo):
    file, exif = io.BytesIO(), Image.Exif()
    for exif[274] in range(1, 9):  # its orientation
        Image.fromarray(photo[:20, :27, 0]).save(file, "JPEG", quality=20, exif=exif)
        with Image.open(file) as coded:
            wanted = np.asarray(ImageOps.exif_transpose(coded), float)[..., None]
        clean = pictures.turned(photo[:20, :27, :1], exif[274])
        operator = make("jpeg", clean.shape, quality=20, orientation=exif[274])
        found = (forward(operator, clean / 127.5 - 1) + 1) * 127.5
        assert abs(found - wanted).mean() < 0.3
        file.seek(0)


def test_jpeg_has_the_derivative_of_no_rounding():
    """At the best quality it hardly changes the image; its straight-through gradient is about 1."""
    operator = make("jpeg", (16, 16, 1), quality=100)
    x = jnp.asarray(RANDOM.uniform(-0.9, 0.9, (1, 16, 16, 1)), jnp.float32)
    weights = jnp.asarray(RANDOM.standard_normal(x.shape), jnp.float32)
    gradient = jax.jit(jax.grad(lambda x: (weights * operator.forward(x)).sum()))(x)
    np.testing.assert_allclose(gradient, weights, rtol=1e-3, atol=1e-3)


def test_radon_is_scikit_images():
    transform = pytest.importorskip("skimage.transform")
    image = RANDOM.random((33, 33)) * transform.resize(np.ones((3, 3)), (33, 33))
    down, across = np.mgrid[:33, :33] - 16
    image = np.where(down**2 + across**2 <= 16**2, image, 0)
    found = forward(make("radon", (33, 33, 1), angles=12), image[..., None])[..., 0]
    wanted = transform.radon(image, theta=np.arange(12) * 15.0, circle=True) / 33
    np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize("kind", ["gaussian", "uniform", "motion"])
def test_blurs_are_scipys(kind):
    """A convolution, not a correlation, with a mirrored border; the kernel is read off a point."""
    operator = make("blur", (40, 40, 1), kind=kind, size=9, std=1.5)
    point = np.zeros((40, 40, 1))
    point[20, 20] = 1
    kernel = forward(operator, point)[16:25, 16:25, 0]
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    image = RANDOM.standard_normal((40, 40, 1))
    wanted = ndimage.convolve(image[..., 0], kernel, mode="mirror")
    np.testing.assert_allclose(forward(operator, image)[..., 0], wanted, atol=1e-5)
    if kind == "gaussian":
        wanted = ndimage.gaussian_filter(image[..., 0], 1.5, mode="mirror", radius=4)
        np.testing.assert_allclose(forward(operator, image)[..., 0], wanted, atol=1e-5)


def test_circular_blurs_go_round():
    operator = make("blur", (20, 20, 1), size=5, std=1.0, border="circular")
    image = RANDOM.standard_normal((20, 20, 1))
    wanted = ndimage.gaussian_filter(image[..., 0], 1.0, mode="wrap", radius=2)
    np.testing.assert_allclose(forward(operator, image)[..., 0], wanted, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4])
def test_bicubic_is_pillows(factor):
    """On floats, where Pillow rounds nothing."""
    image = RANDOM.standard_normal((32, 48)).astype(np.float32)
    picture = Image.fromarray(image)
    wanted = picture.resize((48 // factor, 32 // factor), Image.Resampling.BICUBIC)
    found = forward(make("downsample", (32, 48, 1), factor=factor), image[..., None])[..., 0]
    np.testing.assert_allclose(found, np.asarray(wanted), atol=1e-5)


def test_masks_have_the_share_and_place_that_they_promise():
    """An exact number of pixels, the same in all channels; a box away from the border."""
    random = make("mask", (256, 256, 3), kind="random", share=0.92)
    assert (np.asarray(random.known) == 0).sum() == round(0.92 * 256**2)
    seen = forward(random, np.ones((256, 256, 3)))
    assert (seen == seen[..., :1]).all()
    for seed in range(20):
        box = make("mask", (256, 256, 3), seed, kind="box", side=0.5, margin=1 / 16)
        rows, columns = np.nonzero(np.asarray(box.known)[..., 0] == 0)
        assert len(rows) == 128**2
        for places in (rows, columns):
            assert places.min() >= 16
            assert places.max() < 240
            assert np.ptp(places) == 127


def test_strokes_cover_some_and_differ():
    shares = []
    for seed in range(10):
        known = np.asarray(make("mask", (128, 128, 1), seed, kind="strokes").known)
        shares.append(1 - known.mean())
    assert 0.02 < np.mean(shares) < 0.4
    assert len(set(shares)) == 10


def test_fourier_lines_take_the_share_and_all_of_the_middle():
    known = np.asarray(make("fourier", (64, 100, 1), share=0.25, middle=0.08).known)[..., 0]
    assert (known == known[:1]).all()
    assert known[0].sum() == 25
    assert known[0, [0, 1, 2, 3, -1, -2, -3]].all()


def test_hdr_clips():
    x = np.array([-0.9, -0.4, 0.0, 0.3, 0.8]).reshape(1, 5, 1)
    np.testing.assert_allclose(
        forward(make("hdr", (1, 5, 1)), x).ravel(), [-1, -0.8, 0, 0.6, 1], atol=1e-6
    )


def test_files(tmp_path):
    """A mask is white where the image is missing; a kernel is made to sum to one."""
    mask = np.zeros((8, 10), np.uint8)
    mask[2:4, 3:7] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    operator = make("mask", (8, 10, 3), kind="file", path=str(tmp_path / "mask.png"))
    np.testing.assert_array_equal(np.asarray(operator.known)[..., 0], mask == 0)
    np.save(tmp_path / "kernel.npy", np.ones((3, 3)))
    blur = make("blur", (8, 10, 3), kind="file", path=str(tmp_path / "kernel.npy"))
    np.testing.assert_allclose(forward(blur, np.ones((8, 10, 3))), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mask", dict(kind="hole"), "kind: 'hole' is not one of"),
        ("mask", dict(kind="box", side=0.95), "does not fit"),
        ("mask", dict(kind="random", share=1.5), r"share: 1.5 is not in \[0, 1\]"),
        ("mask", dict(kind="file", path="none.png"), "path: none.png: not a readable image"),
        ("downsample", dict(factor=5), "factor: 5 does not divide 16x16"),
        ("downsample", dict(kind="nearest"), "kind: 'nearest' is not one of"),
        ("blur", dict(size=4), "size: 4 is not an odd number"),
        ("blur", dict(size=61), "does not fit 16x16"),
        ("blur", dict(size=5, std=0.0), "std: 0.0 is not positive"),
        ("blur", dict(size=5, border="zero"), "border: 'zero' is not one of"),
        ("blur", dict(kind="motion", size=5, intensity=2.0), "intensity: 2.0"),
        ("blur", dict(kind="file", path="none.npy"), "path: none.npy: not a readable kernel"),
        ("fourier", dict(share=0.01), "share: needs"),
        ("radon", dict(angles=200), "angles: 200 is not in 1 to 180"),
        ("jpeg", dict(quality=0), "quality: 0 is not in 1 to 100"),
        ("jpeg", dict(orientation=9), "orientation: 9 is not in 1 to 8"),
        ("hdr", dict(gain=-1.0), "gain: -1.0 is not positive"),
        ("compose", {}, "parts: is empty"),
        (
            "compose",
            dict(parts=[dict(name="fourier"), dict(name="mask")]),
            "the output of fourier is not an image",
        ),
    ],
)
def test_impossible_options_are_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        make(name, (16, 16, 3), **options)
    assert "\n" not in str(error.value)


def test_a_mask_of_another_size_names_both(tmp_path):
    Image.fromarray(np.eye(6, 5, dtype=np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="has 5x6 pixels, the image 10x8"):
        make("mask", (8, 10, 3), kind="file", path=str(tmp_path / "mask.png"))
