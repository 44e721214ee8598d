"""Least squares and norms against dense matrices in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.operators.test_operators import (
    LINEAR,
    WITH_SVD,
    flat,
    forward,
    make,
    matrix,
    measurement,
)
from tests.parts import quick
from vitdiff_jax.operators import register, static
from vitdiff_jax.operators.inverse import MIN_WEIGHT, conjugate_gradients, prox_l2, squared_norm
from vitdiff_jax.operators.mask import Mask

SMALL = (6, 6, 2)
SIZE = 72
KINDS = ["random", "average", "circular", "lines", "motion", "old-photo"]  # of SVD, or without
pytestmark = pytest.mark.usefixtures("x64")


@register
class Matrix:
    """Any real matrix [m, n] as an operator, without an SVD."""

    matrix: jax.Array | np.ndarray
    linear: bool = static(default=True)

    def forward(self, x):
        return x.reshape(len(x), -1) @ jnp.asarray(self.matrix, x.dtype).T


def images(seed):
    return np.random.default_rng(seed).standard_normal((3, *SMALL))


solved = jax.jit(prox_l2, static_argnames="steps")
norm_of = jax.jit(squared_norm)


@pytest.mark.parametrize("name", quick(KINDS, LINEAR))
def test_nearest_is_the_minimum(name):
    """(A^T A + w)^-1 (A^T y + w x), for any y, each image with its own weight."""
    operator, x, a = make(LINEAR[name], SMALL), images(0), matrix(name, SMALL)
    y, weights = measurement(operator, np.random.default_rng(1), 3, SMALL), np.array([0.01, 0.3, 5])
    found = np.asarray(solved(operator, y, x, weights, steps=SIZE))
    for i, w in enumerate(weights):
        wanted = np.linalg.solve(a.T @ a + w * np.eye(SIZE), a.T @ flat(y)[i] + w * x[i].ravel())
        np.testing.assert_allclose(found[i].ravel(), wanted, atol=1e-8)


@pytest.mark.parametrize("name", KINDS)
def test_weight_zero_gives_the_nearest_image_that_explains_y(name):
    """x + A^+ (y - A x), up to the least weight."""
    operator, x, a = make(LINEAR[name], SMALL), images(0), matrix(name, SMALL)
    y = forward(operator, images(2))
    found = np.asarray(solved(operator, y, x, np.zeros(3), steps=SIZE)).reshape(3, -1)
    start = x.reshape(3, -1)
    normal = a.T @ a + MIN_WEIGHT * np.eye(SIZE)
    away = (flat(y) - start @ a.T) @ a
    np.testing.assert_allclose(found, start + away @ np.linalg.inv(normal), atol=1e-6)
    np.testing.assert_allclose(found @ a.T, flat(y), atol=1e-3)
    values = np.linalg.svd(a, compute_uv=False)
    if values[values > 1e-10].min() > 0.1:  # else the least weight is felt
        wanted = start + (flat(y) - start @ a.T) @ np.linalg.pinv(a, rcond=1e-6).T
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("name", quick(["circular", "motion"], ["circular", "motion", "radon"]))
def test_images_do_not_touch_each_other(name):
    """In float32, by an SVD and by conjugate gradients; also beside one a million times larger."""
    operator = make(LINEAR[name], SMALL)
    x = (images(0) * np.array([1, 1e6, 1e-3])[:, None, None, None]).astype(np.float32)
    y = np.asarray(forward(operator, images(1).astype(np.float32)))
    few = functools.partial(solved, operator, steps=3)  # far from an answer that hides the way
    weight = jnp.asarray(0.1, jnp.float32)
    whole = few(y, x, weight)
    assert whole.dtype == jnp.float32
    for i, one in enumerate(np.eye(3, dtype=np.float32)[:, :, None, None, None]):
        alone = few(one * y, one * x, weight)[i]  # beside black ones
        np.testing.assert_allclose(whole[i], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", quick(["average"], ["average", "motion"]))
def test_weight_and_operator_may_be_numbers(name):
    """Not only traced, as above; of one weight each image has the same."""
    operator, x = make(LINEAR[name], SMALL), images(0)
    y = operator.forward(jnp.asarray(images(1)))
    found = solved(operator, y, x, np.full(3, 0.2), steps=SIZE)
    np.testing.assert_allclose(found, prox_l2(operator, y, jnp.asarray(x), 0.2, SIZE), atol=1e-9)


@pytest.mark.parametrize("kind", [float, complex])
def test_conjugate_gradients_solve(kind):
    """Hermitian systems, in as many steps as there are different eigenvalues; and b = 0."""
    random = np.random.default_rng(0)
    basis = random.standard_normal((20, 20))
    if kind is complex:
        basis = basis + 1j * random.standard_normal((20, 20))
    basis, _ = np.linalg.qr(basis)
    matrix = (basis * np.repeat([0.01, 1, 3, 100], 5)) @ basis.conj().T
    b = random.standard_normal((3, 20)).astype(kind)
    if kind is complex:
        b = b + 1j * random.standard_normal((3, 20))
    b[1] = 0
    b = jnp.asarray(b)
    solve = jax.jit(lambda steps: conjugate_gradients(lambda v: v @ matrix.T, b, steps))
    np.testing.assert_allclose(solve(4), np.linalg.solve(matrix, b.T).T, atol=1e-7)
    many = np.asarray(solve(100))
    np.testing.assert_allclose(many, np.linalg.solve(matrix, b.T).T, atol=1e-9)
    assert (many[1] == 0).all()


def test_conjugate_gradients_stop_in_float32():
    """A thousand steps too many do no harm."""
    matrix = np.diag(np.geomspace(1e-3, 1, 20)).astype(np.float32)
    b = jnp.ones((2, 20), jnp.float32)
    found = jax.jit(lambda b: conjugate_gradients(lambda v: v @ matrix, b, 1000))(b)
    np.testing.assert_allclose(found, np.tile(1 / np.diag(matrix), (2, 1)), rtol=1e-3)


@pytest.mark.parametrize("name", quick(KINDS, LINEAR))
def test_squared_norm_is_that_of_the_dense_matrix(name):
    """Exact with an SVD, else from below."""
    operator = make(LINEAR[name], SMALL)
    wanted = np.linalg.norm(matrix(name, SMALL), 2) ** 2
    found = np.asarray(norm_of(operator, images(0)))
    assert found.shape in ((1, 1, 1, 1), (3, 1, 1, 1))
    if name in WITH_SVD:
        np.testing.assert_allclose(found, wanted, rtol=1e-9)
    assert (found <= wanted * (1 + 1e-9)).all()
    assert (found > 0.95 * wanted).all()


def test_squared_norm_of_nothing_and_of_what_is_not_linear():
    zero = Matrix(np.zeros((5, SIZE)))
    for operator in (zero, Mask(np.zeros((6, 6, 1), np.float32), 2)):
        assert (np.asarray(norm_of(operator, images(0))) == 0).all()
    assert (np.asarray(norm_of(make(dict(name="hdr")), images(0))) == 1).all()
