"""Our operators against deepinv's on the same images: forward maps and adjoints, in float64.

Borders, centres and units are brought in line; JPEG, HDR and motion's random path have no
counterpart there. Pseudo-inverses are those of dense matrices, see `tests/operators`.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vitdiff_jax import operators

REASON = 'needs deepinv: pip install -e ".[parity]"'
torch = pytest.importorskip("torch", reason=REASON)
physics = pytest.importorskip("deepinv.physics", reason=REASON)
functional = pytest.importorskip("deepinv.physics.functional", reason=REASON)
pytestmark = [pytest.mark.extra, pytest.mark.usefixtures("x64")]

EXACT = 1e-12
"""Allowed max|difference|, values of the order of 1: another order of sums; measured 2e-15."""
ROUNDED = 5e-7
"""The same where our weights are kept in float32, or deepinv's are; measured 2.3e-7."""
COLOUR, GREY = (24, 30, 3), (25, 27, 1)


def make(name, shape, **options):
    return operators.make(name, shape, np.random.default_rng(0), **options)


def noise(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def to_torch(images):
    """[B, H, W, C] to [B, C, H, W]."""
    return torch.from_numpy(np.moveaxis(np.asarray(images), -1, 1).copy())


def from_torch(images):
    return np.moveaxis(images.numpy(), 1, -1)


def weights(kernel):
    """[k, k] as deepinv's filter."""
    return torch.as_tensor(kernel, dtype=torch.float64)[None, None]


def agree(found, wanted, atol):
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)


def same(ours, theirs, shape, atol):
    """Forward map and adjoint."""
    x = noise(2, *shape)
    wanted = from_torch(theirs.A(to_torch(x)))
    agree(ours.forward(jnp.asarray(x)), wanted, atol)
    y = noise(*wanted.shape)
    agree(adjoint(ours, y, shape), from_torch(theirs.A_adjoint(to_torch(y))), atol)


def adjoint(ours, y, shape):
    return np.asarray(operators.adjoint(ours, jnp.asarray(y), shape))


@pytest.mark.parametrize("shape", [COLOUR, GREY])
def test_pixels_by_themselves(shape, tmp_path):
    """Our mask's picture is white where the image is missing, deepinv's is 1 where it is known.

    Grey is deepinv's flat spectral response, not its default, which is luma.
    """
    missing = np.random.default_rng(0).random(shape[:2]) < 0.4
    Image.fromarray(np.uint8(255 * missing)).save(tmp_path / "mask.png")
    ours = make("mask", shape, kind="file", path=str(tmp_path / "mask.png"))
    known = to_torch(~missing[None, ..., None]).double()
    same(ours, physics.Inpainting(img_size=(shape[2], *shape[:2]), mask=known), shape, 0)
    same(make("denoise", shape), physics.Denoising(), shape, 0)
    theirs = physics.Decolorize(channels=shape[2], srf="flat")
    same(make("colourise", shape), theirs, shape, EXACT)  # both round 1 / 3 to float32


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_averages(factor):
    """ "valid": with its other borders deepinv centres a kernel of 3 or 4 off the block."""
    shape = (6 * factor, 8 * factor, 3)
    ours = make("downsample", shape, kind="average", factor=factor)
    theirs = physics.Downsampling(
        img_size=(3, *shape[:2]),
        filter=weights(np.full((factor, factor), 1 / factor**2)),
        factor=factor,
        padding="valid",
    )
    same(ours, theirs, shape, ROUNDED if factor == 3 else EXACT)  # 1 / 2 and 1 / 4 are floats


@pytest.mark.parametrize("factor", [2, 3, 4, 6])
def test_bicubic_inside(factor):
    """Two pixels from the border, where deepinv's MATLAB mirrors and ours normalises."""
    shape, inside = (9 * factor, 7 * factor, 3), np.s_[:, 2:-2, 2:-2]
    ours, theirs = make("downsample", shape, factor=factor), physics.DownsamplingMatlab(factor)
    atol, x = EXACT if factor in (2, 4) else ROUNDED, noise(2, *shape)
    found, wanted = ours.forward(jnp.asarray(x)), from_torch(theirs.A(to_torch(x)))
    agree(found[inside], wanted[inside], atol)
    y = np.zeros(wanted.shape)
    y[inside] = noise(*y[inside].shape)
    agree(adjoint(ours, y, shape), from_torch(theirs.A_adjoint(to_torch(y))), atol)


def lopsided():
    """A kernel without any symmetry, with which a correlation is no convolution."""
    kernel = np.random.default_rng(5).random((5, 5))
    kernel[1, 3] += 20
    return kernel / kernel.sum()


BLURS = {
    "gaussian": (
        dict(kind="gaussian", size=7, std=1.3),
        lambda: functional.gaussian_blur((7, 7), 1.3, dtype=torch.float64)[0, 0],
    ),
    "uniform": (dict(kind="uniform", size=3), lambda: np.full((3, 3), 1 / 9)),
    "file": (dict(kind="file", path="kernel.npy"), lopsided),
}


@pytest.fixture(params=BLURS)
def blur(request, tmp_path, monkeypatch):
    """(our options, deepinv's filter)."""
    monkeypatch.chdir(tmp_path)
    np.save("kernel.npy", 3 * lopsided())  # made to sum to one by us
    options, kernel = BLURS[request.param]
    return options, weights(kernel())


@pytest.mark.parametrize("shape", [COLOUR, GREY])
def test_blurs(blur, shape):
    """torch's "reflect": the border's own pixels are not repeated."""
    options, kernel = blur
    mirrored, circular = (physics.Blur(filter=kernel, padding=p) for p in ("reflect", "circular"))
    same(make("blur", shape, **options), mirrored, shape, ROUNDED)
    same(make("blur", shape, border="circular", **options), circular, shape, EXACT)


def to_pairs(z):
    """[B, H, W, C], zero first, to real and imaginary parts [B C, 2, H, W], zero in the middle."""
    z = np.fft.fftshift(np.moveaxis(np.asarray(z), -1, 1), (2, 3))
    z = z.reshape(-1, 1, *z.shape[2:])
    return torch.from_numpy(np.concatenate([z.real, z.imag], 1))


def from_pairs(pairs, channels):
    z = np.fft.ifftshift((pairs[:, 0] + 1j * pairs[:, 1]).numpy(), (1, 2))
    return np.moveaxis(z.reshape(-1, channels, *z.shape[1:]), 1, -1)


@pytest.mark.parametrize("shape", [COLOUR, GREY])
@pytest.mark.parametrize("kind", ["lines", "random"])
def test_magnetic_resonance(kind, shape):
    """deepinv's images are complex: ours are their real part, and so is the adjoint."""
    ours = make("fourier", shape, kind=kind, share=0.4)
    mask = torch.from_numpy(np.fft.fftshift(np.asarray(ours.known)[..., 0]))
    theirs = physics.MRI(mask=mask)
    x = noise(2, *shape)
    found = ours.forward(jnp.asarray(x))
    agree(found, from_pairs(theirs.A(to_pairs(x)), shape[2]), EXACT)
    y = noise(2, *shape) + 1j * noise(3, *shape)[:2]
    wanted = from_pairs(theirs.A_adjoint(to_pairs(y)), shape[2])
    agree(adjoint(ours, y, shape), wanted.real, EXACT)


ANGLES = np.arange(12) * 15.0  # 0, 45, 90 and 135 degrees, where places are whole pixels


def tomography(size, circle):
    return physics.Tomography(
        angles=torch.from_numpy(ANGLES), img_width=size, circle=circle, normalize=False,
        dtype=torch.float64,
    )  # fmt: skip


def disc(size, radius):
    """[size, size, 1]: 1 within the radius of pixel size // 2."""
    down, across = np.mgrid[:size, :size] - size // 2
    return (down**2 + across**2 <= radius**2)[..., None].astype(float)


@pytest.mark.parametrize("size", [25, 33])
def test_tomography_in_a_circle(size):
    """deepinv blackens what lies outside, and does not divide by the number of pixels."""
    ours, theirs = make("radon", (size, size, 3), angles=12), tomography(size, circle=True)
    x, inside = noise(2, size, size, 3), disc(size, size // 2)
    wanted = from_torch(theirs.A(to_torch(x))) / size
    agree(ours.forward(jnp.asarray(x * inside)), wanted, EXACT)
    y = noise(*wanted.shape)
    wanted = from_torch(theirs.A_adjoint(to_torch(y))) / size
    agree(adjoint(ours, y, x.shape[1:]) * inside, wanted, EXACT)


def test_tomography_of_a_square():
    """Its corners too: deepinv widens the image to its diagonal, which for us is done by hand."""
    size, theirs = 23, tomography(23, circle=False)
    x = noise(2, size, size, 3)
    wanted = from_torch(theirs.A(to_torch(x)))
    whole = wanted.shape[1]
    assert whole == 33
    ours, edge = make("radon", (whole, whole, 3), angles=12), (whole - size) // 2
    wide = np.pad(x, [(0, 0), (edge, edge), (edge, edge), (0, 0)])
    agree(ours.forward(jnp.asarray(wide)), wanted / whole, EXACT)
    y = noise(*wanted.shape)
    wanted = from_torch(theirs.A_adjoint(to_torch(y))) / whole
    found = adjoint(ours, y, (whole, whole, 3))[:, edge:-edge, edge:-edge]
    agree(found, wanted, EXACT)


def test_tomography_of_an_even_size():
    """Ours turn about pixel size // 2, as scikit-image's; deepinv's about the same of size + 1."""
    size = 24
    ours, theirs = make("radon", (size, size, 3), angles=12), tomography(size + 1, circle=True)
    x = noise(2, size + 1, size + 1, 3) * disc(size + 1, size // 2 - 2)
    wanted = from_torch(theirs.A(to_torch(x))) / size
    agree(ours.forward(jnp.asarray(x[:, :-1, :-1])), wanted[:, :-1], EXACT)
