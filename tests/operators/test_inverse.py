"""Least squares, norms and pictures of measurements, against dense matrices in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.operators.test_operators import LINEAR, SHAPE, WITH_SVD, dense, flat, make, measurement
from vitdiff_jax.operators import register, static
from vitdiff_jax.operators.inverse import (
    LEAST_WEIGHT,
    as_image,
    conjugate_gradients,
    nearest,
    squared_norm,
)
from vitdiff_jax.operators.mask import Mask

SMALL = (6, 6, 2)
SIZE = 72
pytestmark = pytest.mark.usefixtures("x64")


@register
class Matrix:
    """Any real matrix [m, n] as an operator, without an SVD."""

    matrix: jax.Array | np.ndarray
    linear: bool = static(default=True)

    def forward(self, x):
        return x.reshape(len(x), -1) @ jnp.asarray(self.matrix, x.dtype).T


def images(seed, count=3, shape=SMALL):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((count, *shape)))


@pytest.mark.parametrize("name", LINEAR)
def test_nearest_is_the_minimum(name):
    """(A^T A + w)^-1 (A^T y + w x), for any y, each image with its own weight."""
    operator, x = make(LINEAR[name], SMALL), images(0)
    y, matrix = measurement(operator, np.random.default_rng(1), 3, SMALL), dense(operator, SMALL)
    weights = np.array([0.01, 0.3, 5.0])
    found = np.asarray(nearest(operator, y, x, jnp.asarray(weights), steps=SIZE))
    for i, w in enumerate(weights):
        normal = matrix.T @ matrix + w * np.eye(SIZE)
        wanted = np.linalg.solve(normal, matrix.T @ flat(y)[i] + w * np.asarray(x)[i].ravel())
        np.testing.assert_allclose(found[i].ravel(), wanted, atol=1e-8)


@pytest.mark.parametrize("name", ["random", "average", "circular", "lines", "motion", "old-photo"])
def test_weight_zero_gives_the_nearest_image_that_explains_y(name):
    """x + A^+ (y - A x), up to the least weight."""
    operator, x = make(LINEAR[name], SMALL), images(0)
    y, matrix = operator.forward(images(2)), dense(operator, SMALL)
    found = np.asarray(nearest(operator, y, x, 0.0, steps=200)).reshape(3, -1)
    start = np.asarray(x).reshape(3, -1)
    normal = matrix.T @ matrix + LEAST_WEIGHT * np.eye(SIZE)
    away = (flat(y) - start @ matrix.T) @ matrix
    np.testing.assert_allclose(found, start + away @ np.linalg.inv(normal), atol=1e-6)
    np.testing.assert_allclose(found @ matrix.T, flat(y), atol=1e-3)
    values = np.linalg.svd(matrix, compute_uv=False)
    if values[values > 1e-10].min() > 0.1:  # else the least weight is felt
        wanted = start + (flat(y) - start @ matrix.T) @ np.linalg.pinv(matrix, rcond=1e-6).T
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("name", ["circular", "radon"])
def test_images_do_not_touch_each_other(name):
    """In float32, by an SVD and by conjugate gradients; also beside one a million times larger."""
    operator = make(LINEAR[name], SMALL)
    x = images(0).astype(jnp.float32) * jnp.array([1, 1e6, 1e-3])[:, None, None, None]
    x = x.astype(jnp.float32)
    y = operator.forward(images(1).astype(jnp.float32))
    whole = nearest(operator, y, x, 0.1, steps=3)  # far from an answer that hides the way there
    assert whole.dtype == jnp.float32
    for i in range(3):
        alone = nearest(operator, y[i : i + 1], x[i : i + 1], 0.1, steps=3)[0]
        np.testing.assert_allclose(whole[i], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["average", "lines", "radon"])
def test_weight_and_operator_can_be_traced(name):
    operator, x = make(LINEAR[name], SMALL), images(0)
    y = operator.forward(images(1))
    found = jax.jit(nearest)(operator, y, x, jnp.asarray(0.2))
    np.testing.assert_allclose(found, nearest(operator, y, x, 0.2), atol=1e-9)


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
    found = np.asarray(conjugate_gradients(lambda v: v @ matrix.T, jnp.asarray(b), 4))
    np.testing.assert_allclose(found, np.linalg.solve(matrix, b.T).T, atol=1e-7)
    many = np.asarray(conjugate_gradients(lambda v: v @ matrix.T, jnp.asarray(b), 100))
    np.testing.assert_allclose(many, np.linalg.solve(matrix, b.T).T, atol=1e-9)
    assert (many[1] == 0).all()


def test_conjugate_gradients_stop_in_float32():
    """A thousand steps too many do no harm."""
    matrix = np.diag(np.geomspace(1e-3, 1, 20)).astype(np.float32)
    b = jnp.ones((2, 20), jnp.float32)
    found = conjugate_gradients(lambda v: v @ matrix, b, 1000)
    np.testing.assert_allclose(found, np.tile(1 / np.diag(matrix), (2, 1)), rtol=1e-3)


@pytest.mark.parametrize("name", LINEAR)
def test_squared_norm_is_that_of_the_dense_matrix(name):
    """Exact with an SVD, else from below."""
    operator = make(LINEAR[name], SMALL)
    wanted = np.linalg.norm(dense(operator, SMALL), 2) ** 2
    found = np.asarray(squared_norm(operator, images(0)))
    assert found.shape in ((1, 1, 1, 1), (3, 1, 1, 1))
    if name in WITH_SVD:
        np.testing.assert_allclose(found, wanted, rtol=1e-9)
    assert (found <= wanted * (1 + 1e-9)).all()
    assert (found > 0.95 * wanted).all()


def test_squared_norm_of_nothing_and_of_what_is_not_linear():
    """0, without dividing by it; and 1."""
    zero = Matrix(np.zeros((5, SIZE)))
    for operator in (zero, Mask(np.zeros((6, 6, 1), np.float32), 2)):
        assert (np.asarray(squared_norm(operator, images(0))) == 0).all()
    assert (np.asarray(squared_norm(make(dict(name="hdr")), images(0))) == 1).all()


def test_a_picture_of_what_was_measured():
    """y itself if it is one; the pseudo-inverse; what is hidden is grey."""
    x = images(3)
    blurred = make(LINEAR["motion"], SMALL).forward(x)
    np.testing.assert_array_equal(as_image(make(LINEAR["motion"], SMALL), blurred, SMALL), blurred)
    mask = make(LINEAR["random"], SMALL)
    np.testing.assert_array_equal(as_image(mask, x, SMALL), mask.forward(x))
    for name in ("average", "colourise", "lines"):
        operator = make(LINEAR[name], SMALL)
        inverse = np.linalg.pinv(dense(operator, SMALL), rcond=1e-6)
        wanted = flat(operator.forward(x)) @ inverse.T
        found = np.asarray(as_image(operator, operator.forward(x), SMALL)).reshape(3, -1)
        np.testing.assert_allclose(found, wanted, atol=1e-7)


def test_a_picture_of_several_damages():
    """The last one is taken back first, each by its pseudo-inverse; what a mask hid stays grey."""
    operator, x = make(LINEAR["old-photo"], SHAPE), images(3, shape=SHAPE)
    small, grey, masked = operator.parts
    y = operator.forward(x)
    inverses = [
        np.linalg.pinv(dense(grey, (6, 6, 3)), rcond=1e-6),
        np.linalg.pinv(dense(small, SHAPE), rcond=1e-6),
    ]
    wanted = flat(masked.forward(y)) @ inverses[0].T @ inverses[1].T
    found = np.asarray(as_image(operator, y, SHAPE)).reshape(3, -1)
    np.testing.assert_allclose(found, wanted, atol=1e-7)


def test_no_picture_of_what_changes_the_shape_and_is_not_linear():
    small = make(dict(name="downsample", factor=2), SMALL)
    y = make(dict(name="hdr"), SMALL).forward(small.forward(images(0)))
    with pytest.raises(ValueError, match=r"Clipped is not linear and gives no image of .*6, 6, 2"):
        as_image(make(dict(name="hdr"), SMALL), y, SMALL)
