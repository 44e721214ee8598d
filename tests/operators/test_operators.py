"""What every operator promises, against the dense matrix that it stands for, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitdiff_jax import operators
from vitdiff_jax.operators import presets
from vitdiff_jax.operators.fourier import FourierMask
from vitdiff_jax.operators.mask import Mask

SHAPE = (6, 6, 3)
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


@jax.jit
def forward(operator, x):
    return operator.forward(x)


def dense(operator, shape=SHAPE):
    """The real matrix of a linear operator, imaginary parts below the real ones."""
    return flat(forward(operator, np.eye(np.prod(shape)).reshape(-1, *shape))).T


@functools.cache
def matrix(name, shape=SHAPE):
    """That of one of LINEAR."""
    return dense(make(LINEAR[name], shape), shape)


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
    back = np.asarray(jax.jit(operators.adjoint, static_argnums=2)(operator, y, SHAPE))
    one, other = np.vdot(forward(operator, x), y).real, np.vdot(x, back)
    assert one == pytest.approx(other, rel=1e-10)
    np.testing.assert_allclose(back.reshape(2, -1), flat(y) @ matrix(name), atol=1e-10)


@pytest.mark.parametrize("name", LINEAR)
def test_it_is_linear(name):
    """What it does to an image is a product with its matrix, with or without `jit`."""
    operator, x = make(LINEAR[name]), np.random.default_rng(2).standard_normal((2, *SHAPE))
    assert operator.linear
    for map_ in (forward, lambda operator, x: operator.forward(x)):
        found = flat(map_(operator, jnp.asarray(x)))
        np.testing.assert_allclose(found, flat(x) @ matrix(name).T, atol=1e-12)


@jax.jit
def decomposed(operator, x, y):
    """Everything that an SVD has: s, V^* x, V V^* x, U^* A x, A^+ y."""
    svd = operator.svd()
    z = svd.v_adjoint(x)
    measured = svd.u_adjoint(operator.forward(x))
    return svd.values, z, svd.v(z), measured, svd.pseudo_inverse(y, rtol=1e-3)


@pytest.mark.parametrize("name", WITH_SVD)
def test_svd_is_that_of_the_dense_matrix(name):
    """Singular values, the unitary V, U^* A = diag(s) V^*, and the pseudo-inverse."""
    operator, random = make(LINEAR[name]), np.random.default_rng(3)
    x, y = random.standard_normal((2, *SHAPE)), measurement(operator, random)
    values, z, back, measured, inverted = map(np.asarray, decomposed(operator, x, y))
    wanted = np.zeros(values.size)
    found = np.linalg.svd(matrix(name), compute_uv=False)[: values.size]
    wanted[values.size - len(found) :] = np.sort(found)
    np.testing.assert_allclose(np.sort(values.ravel()), wanted, atol=1e-10)
    np.testing.assert_allclose(back, x, atol=1e-10)
    assert np.linalg.norm(z) == pytest.approx(np.linalg.norm(x))
    np.testing.assert_allclose(measured, values * z, atol=1e-10)
    inverse = np.linalg.pinv(matrix(name), rcond=1e-3)
    np.testing.assert_allclose(flat(inverted), flat(y) @ inverse.T, atol=1e-9)


@pytest.mark.parametrize("name", ["lines", "points", "circular"])
def test_noise_keeps_its_size_under_the_svd(name):
    """White noise, in real and imaginary part each, is white noise of that size under U^*."""
    operator, random = make(LINEAR[name]), np.random.default_rng(4)

    @jax.jit
    def measured(operator, y):
        return operator.svd().u_adjoint(y), operator.svd().values

    noise, values = measured(operator, measurement(operator, random, batch=4000))
    power = (np.abs(np.asarray(noise)) ** 2).mean(0)[np.asarray(values) > 0]
    assert abs(power - 1).max() < 6 / np.sqrt(2000)


@pytest.mark.parametrize("name", LINEAR)
def test_an_operator_is_an_argument_of_jit(name):
    """Another mask of the same kind compiles nothing anew."""
    calls = []

    @jax.jit
    def traced(operator):
        calls.append(1)
        return jax.tree.leaves(operator)

    for seed in (0, 1):
        traced(make(LINEAR[name], seed=seed))
    assert len(calls) == 1


def test_operators_of_two_kinds_are_never_one_to_jit():
    """A mask of pixels and one of frequencies have the same fields."""
    mask = make(LINEAR["random"])
    frequencies = FourierMask(mask.known, mask.channels)
    assert jax.tree.structure(mask) != jax.tree.structure(frequencies)
    leaves, kind = jax.tree_util.tree_flatten_with_path(mask)
    assert [jax.tree_util.keystr(path) for path, _ in leaves] == [".known"]
    assert jax.tree.unflatten(kind, [leaf for _, leaf in leaves]) == mask


def test_a_mask_for_each_image_of_a_batch():
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
