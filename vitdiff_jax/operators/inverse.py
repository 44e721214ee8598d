"""Regularised least squares for linear operators, by SVD where available, else conjugate gradients.

    prox_l2(y, x, w) = argmin_v |y - A v|^2 + w |v - x|^2 = x + (A^* A + w)^{-1} A^* (y - A x)

Everything is per image: the images of a batch do not affect each other.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vitdiff_jax.operators import Operator, Shape, adjoint
from vitdiff_jax.operators.compose import Composed
from vitdiff_jax.operators.mask import Mask
from vitdiff_jax.operators.radon import Radon
from vitdiff_jax.operators.svd import Decomposable

MIN_WEIGHT = 1e-7
"""With smaller weights the result equals the pseudo-inverse in float32."""
AS_IMAGE_WEIGHT = 0.01
"""For `as_image` by least squares: 23 dB for the phantom from 60 angles, 13 dB with noise 0.1; a
weight of 1e-4 gives 29 and 3."""
Map = Callable[[jax.Array], jax.Array]


def prox_l2(
    operator: Operator, y: jax.Array, x: jax.Array, weight: jax.Array | float, steps: int = 30
) -> jax.Array:
    """The proximal operator of the data term at x [B, H, W, C]; weight >= 0, a scalar or [B].

    steps: of conjugate gradients, where the operator has no SVD.
    """
    weight = jnp.maximum(jnp.asarray(weight, x.dtype), MIN_WEIGHT)
    weight = weight.reshape(-1, 1, 1, 1)
    if isinstance(operator, Decomposable):
        svd = operator.svd()
        values = svd.values.astype(x.dtype)
        found = values * (svd.u_adjoint(y) - values * svd.v_adjoint(x)) / (values**2 + weight)
        return x + svd.v(found).astype(x.dtype)

    def back(v):
        return adjoint(operator, v, x.shape[1:])

    def normal(v):
        return back(operator.forward(v)) + weight * v

    return x + conjugate_gradients(normal, back(y - operator.forward(x)), steps)


def as_image(operator: Operator, y: jax.Array, shape: Shape) -> jax.Array:
    """The measurement as an image, float [B, *shape], for display and as a network input.

    y itself where it has the shape of the image, 0 (grey) where masked; else the pseudo-inverse, or
    least squares regularised towards 0; the parts of a composition are inverted in reverse order.
    Raises ValueError for nonlinear operators that change the shape.
    """
    if isinstance(operator, Composed):
        shapes = [shape]
        for part in operator.parts[:-1]:
            x = jax.ShapeDtypeStruct((1, *shapes[-1]), jnp.finfo(y.dtype).dtype)
            shapes.append(jax.eval_shape(part.forward, x).shape[1:])
        for part, before in zip(reversed(operator.parts), reversed(shapes)):
            y = as_image(part, y, before)
        return y
    if isinstance(operator, Mask):
        return operator.forward(y)
    real = not jnp.iscomplexobj(y)
    if real and y.shape[1:] == tuple(shape) and not isinstance(operator, Radon):
        return y
    if isinstance(operator, Decomposable):
        return operator.svd().pseudo_inverse(y).astype(jnp.finfo(y.dtype).dtype)
    if not operator.linear:
        raise ValueError(
            f"{type(operator).__name__} is not linear and its output is not an image of {shape}"
        )
    x = jnp.zeros((len(y), *shape), jnp.finfo(y.dtype).dtype)
    return prox_l2(operator, y, x, AS_IMAGE_WEIGHT)


def conjugate_gradients(matrix: Map, b: jax.Array, steps: int) -> jax.Array:
    """Solve matrix(v) = b for a Hermitian positive definite map, separately for each b [B, ...].

    Iterations stop at the precision of the dtype.
    """
    tiny = jnp.finfo(b.dtype).eps ** 2 * dot(b, b)

    def step(_, state):
        v, residual, direction, size = state
        image = matrix(direction)
        curvature = dot(direction, image)
        active = (size > tiny) & (curvature > 0)
        length = jnp.where(active, size / jnp.where(active, curvature, 1), 0)
        v = v + length * direction
        residual = residual - length * image
        new = dot(residual, residual)
        ratio = jnp.where(active, new / jnp.where(active, size, 1), 0)
        return v, residual, residual + ratio * direction, new

    start = (jnp.zeros_like(b), b, b, dot(b, b))
    return jax.lax.fori_loop(0, steps, step, start)[0]


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Real inner product per image, [B, 1, ...]."""
    axes = tuple(range(1, a.ndim))
    return jnp.sum((jnp.conj(a) * b).real, axes, keepdims=True)


def squared_norm(operator: Operator, like: jax.Array, steps: int = 20) -> jax.Array:
    """The squared spectral norm of A on images like [B, H, W, C]: [B, 1, 1, 1] or [1, 1, 1, 1].

    By power iteration, a lower bound within a few per cent; 1 for nonlinear operators.
    """
    if not operator.linear:
        return jnp.ones((1, 1, 1, 1), like.dtype)
    if isinstance(operator, Decomposable):
        return (operator.svd().values.astype(like.dtype) ** 2).max().reshape(1, 1, 1, 1)
    noise = jax.random.normal(jax.random.key(0), (1, *like.shape[1:]), like.dtype)

    def step(_, v):
        v = adjoint(operator, operator.forward(v), like.shape[1:])
        return v / jnp.sqrt(jnp.maximum(dot(v, v), jnp.finfo(v.dtype).tiny))

    v = jax.lax.fori_loop(0, steps, step, jnp.broadcast_to(noise, like.shape))
    image = operator.forward(v)
    return dot(image, image).reshape(-1, 1, 1, 1) / jnp.maximum(dot(v, v), jnp.finfo(v.dtype).tiny)
