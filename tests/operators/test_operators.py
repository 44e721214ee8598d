"""What every operator promises, against the dense matrix that it stands for, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitdiff_jax import operators
from vitdiff_jax.operators import presets

SHAPE = (12, 12, 3)
LINEAR = {
    "denoise": dict(name="denoise"),
    "box": dict(name="mask", kind="box"),
    "random": dict(name="mask", kind="random", share=0.6),
    "strokes": dict(name="mask", kind="strokes"),
    "average": dict(name="downsample", kind="average", factor=2),
    "bicubic": dict(name="downsample", kind="bicubic", factor=3),
    "gaussian": dict(name="blur", kind="gaussian", size=5, std=1.0),
    "uniform": dict(name="blur", kind="uniform", size=3),
    "circular": dict(name="blur", kind="gaussian", size=5, std=1.0, border="circular"),
    "motion": dict(name="blur", kind="motion", size=7),
    "motion-circular": dict(name="blur", kind="motion", size=7, border="circular"),
    "colourise": dict(name="colourise"),
    "lines": dict(name="fourier", kind="lines", share=0.4),
    "points": dict(name="fourier", kind="random", share=0.4),
    "radon": dict(name="radon", angles=4),
    "old-photo": dict(
        name="compose",
        parts=[dict(name="downsample", factor=2), dict(name="colourise"), dict(name="mask")],
    ),
}
WITH_SVD = [n for n in LINEAR if n not in ("motion", "radon", "old-photo")]
pytestmark = pytest.mark.usefixtures("x64")


def make(options, shape=SHAPE, seed=0):
    options = dict(options)
    return operators.make(options.pop("name"), shape, np.random.default_rng(seed), **options)


def dense(operator, shape=SHAPE):
    """The real matrix of a linear operator, imaginary parts below the real ones."""
    units = jnp.eye(np.prod(shape)).reshape(-1, *shape)
    columns = np.asarray(operator.forward(units)).reshape(len(units), -1)
    return flat(columns).T


def flat(y):
    """Rows of real numbers."""
    y = np.asarray(y).reshape(len(y), -1)
    return np.concatenate([y.real, y.imag], 1) if np.iscomplexobj(y) else y


def measurement(operator, random, batch=2, shape=SHAPE):
    """Anything of the measurement's shape and type."""
    y = jax.eval_shape(operator.forward, jax.ShapeDtypeStruct((batch, *shape), jnp.float64))
    found = random.standard_normal(y.shape)
    if jnp.issubdtype(y.dtype, jnp.complexfloating):
        found = found + 1j * random.standard_normal(y.shape)
    return jnp.asarray(found)


@pytest.mark.parametrize("name", LINEAR)
def test_adjoint_identity(name):
    """<A x, y> = <x, A^* y>, real parts, and A^* is the dense matrix transposed."""
    operator, random = make(LINEAR[name]), np.random.default_rng(1)
    x, y = random.standard_normal((2, *SHAPE)), measurement(operator, random)
    back = np.asarray(operators.adjoint(operator, y, SHAPE))
    one, other = np.vdot(operator.forward(jnp.asarray(x)), y).real, np.vdot(x, back)
    assert one == pytest.approx(other, rel=1e-10)
    np.testing.assert_allclose(back.reshape(2, -1), flat(y) @ dense(operator), atol=1e-10)


@pytest.mark.parametrize("name", LINEAR)
def test_it_is_linear(name):
    operator, random = make(LINEAR[name]), np.random.default_rng(2)
    assert operator.linear
    a, b = jnp.asarray(random.standard_normal((2, 1, *SHAPE)))
    whole = operator.forward(2 * a - 3 * b)
    np.testing.assert_allclose(whole, 2 * operator.forward(a) - 3 * operator.forward(b), atol=1e-12)


@pytest.mark.parametrize("name", WITH_SVD)
def test_svd_is_that_of_the_dense_matrix(name):
    """Singular values, the unitary V, U^* A = diag(s) V^*, and the pseudo-inverse."""
    operator, random = make(LINEAR[name]), np.random.default_rng(3)
    svd, matrix = operator.svd(), dense(operator)
    values = np.sort(np.asarray(svd.values).ravel())
    wanted = np.zeros(len(values))
    found = np.linalg.svd(matrix, compute_uv=False)[: len(values)]
    wanted[len(values) - len(found) :] = np.sort(found)
    np.testing.assert_allclose(values, wanted, atol=1e-10)
    x = jnp.asarray(random.standard_normal((2, *SHAPE)))
    z = svd.analyse(x)
    np.testing.assert_allclose(svd.synthesise(z), x, atol=1e-10)
    assert np.linalg.norm(z) == pytest.approx(np.linalg.norm(x))
    np.testing.assert_allclose(svd.measured(operator.forward(x)), svd.values * z, atol=1e-10)
    y = measurement(operator, random)
    inverse = np.linalg.pinv(matrix, rcond=1e-3)
    np.testing.assert_allclose(
        flat(svd.pseudo_inverse(y, least=1e-3)), flat(y) @ inverse.T, atol=1e-9
    )


@pytest.mark.parametrize("name", ["lines", "points", "circular"])
def test_noise_keeps_its_size_under_the_svd(name):
    """White noise, in real and imaginary part each, is white noise of that size under U^*."""
    operator = make(LINEAR[name])
    svd, random = operator.svd(), np.random.default_rng(4)
    noise = svd.measured(measurement(operator, random, batch=4000))
    power = (np.abs(np.asarray(noise)) ** 2).mean(0)[np.asarray(svd.values) > 0]
    assert abs(power - 1).max() < 6 / np.sqrt(2000)


@pytest.mark.parametrize("name", LINEAR)
def test_it_goes_through_jit(name):
    """As an argument: another mask of the same kind compiles nothing anew."""
    calls = []

    @jax.jit
    def forward(operator, x):
        calls.append(1)
        return operator.forward(x)

    x = jnp.asarray(np.random.default_rng(5).standard_normal((2, *SHAPE)))
    for seed in (0, 1):
        operator = make(LINEAR[name], seed=seed)
        np.testing.assert_allclose(forward(operator, x), operator.forward(x), atol=1e-12)
    assert len(calls) == 1


def test_a_mask_for_each_image_of_a_batch():
    """Masks of a batch are one operator."""
    from vitdiff_jax.operators.mask import Mask

    known = np.random.default_rng(6).random((4, *SHAPE[:2], 1)) < 0.5
    x = jnp.ones((4, *SHAPE))
    np.testing.assert_array_equal(Mask(known, 3).forward(x), np.repeat(known, 3, -1))


def test_names_and_options_that_do_not_exist():
    random = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"no operator 'blurr', only .*blur"):
        operators.make("blurr", SHAPE, random)
    with pytest.raises(ValueError, match=r"mask: .*shares"):
        operators.make("mask", SHAPE, random, shares=0.5)


def test_what_is_not_linear_has_no_adjoint():
    operator = make(dict(name="hdr"))
    with pytest.raises(ValueError, match="Clipped is not linear"):
        operators.adjoint(operator, jnp.zeros((1, *SHAPE)), SHAPE)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_can_be_made_at_256_pixels(name):
    preset = presets.PRESETS[name]
    operator = make(preset.operator, (256, 256, 3))
    x = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    y = jax.eval_shape(operator.forward, x)
    assert y.dtype == jnp.float32
    assert 0 < preset.noise_std <= 0.2
