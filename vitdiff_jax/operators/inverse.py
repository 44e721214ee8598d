"""Least squares with a linear operator: by its SVD where there is one, else conjugate gradients.

    nearest(y, x, w) = argmin_v |y - A v|^2 + w |v - x|^2 = x + (A^* A + w)^{-1} A^* (y - A x)

Everything is per image: no image of a batch changes another's answer.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vitdiff_jax.operators import Operator, Shape, adjoint
from vitdiff_jax.operators.compose import Composed
from vitdiff_jax.operators.mask import Mask
from vitdiff_jax.operators.radon import Radon
from vitdiff_jax.operators.svd import Decomposable

LEAST_WEIGHT = 1e-7
"""Below it, float32 cannot tell the answer from the pseudo-inverse's."""
SHOWN_WEIGHT = 0.01
"""For a picture by least squares: of the phantom from 60 angles, 23 dB, and 13 dB with noise 0.1,
where a weight of 1e-4 has 29 and 3."""
Map = Callable[[jax.Array], jax.Array]


def nearest(
    operator: Operator, y: jax.Array, x: jax.Array, weight: jax.Array | float, steps: int = 30
) -> jax.Array:
    """What explains y best and is near x [B, H, W, C]; weight >= 0, for all or [B].

    steps: of conjugate gradients, where the operator has no SVD.
    """
    weight = jnp.maximum(jnp.asarray(weight, x.dtype), LEAST_WEIGHT)
    weight = weight.reshape(-1, 1, 1, 1)
    if isinstance(operator, Decomposable):
        svd = operator.svd()
        values = svd.values.astype(x.dtype)
        found = values * (svd.measured(y) - values * svd.analyse(x)) / (values**2 + weight)
        return x + svd.synthesise(found).astype(x.dtype)

    def back(v):
        return adjoint(operator, v, x.shape[1:])

    def normal(v):
        return back(operator.forward(v)) + weight * v

    return x + conjugate_gradients(normal, back(y - operator.forward(x)), steps)


def as_image(operator: Operator, y: jax.Array, shape: Shape) -> jax.Array:
    """An image float [B, *shape] that shows what was measured, for people and networks.

    y itself where it is an image of that shape, 0 (grey) where a mask hides it; else the
    pseudo-inverse, or least squares near 0; of several degradations the last one first. Raises
    ValueError for what is not linear and changes the shape.
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
            f"{type(operator).__name__} is not linear and gives no image of the shape {shape}"
        )
    x = jnp.zeros((len(y), *shape), jnp.finfo(y.dtype).dtype)
    return nearest(operator, y, x, SHOWN_WEIGHT)


def conjugate_gradients(matrix: Map, b: jax.Array, steps: int) -> jax.Array:
    """Solve matrix(v) = b, the matrix Hermitian and positive, each image of b [B, ...] by itself.

    It stops where the residual is as small as the float type allows.
    """
    tiny = jnp.finfo(b.dtype).eps ** 2 * dot(b, b)

    def step(_, state):
        v, residual, direction, size = state
        image = matrix(direction)
        curvature = dot(direction, image)
        going = (size > tiny) & (curvature > 0)
        length = jnp.where(going, size / jnp.where(going, curvature, 1), 0)
        v = v + length * direction
        residual = residual - length * image
        new = dot(residual, residual)
        ratio = jnp.where(going, new / jnp.where(going, size, 1), 0)
        return v, residual, residual + ratio * direction, new

    start = (jnp.zeros_like(b), b, b, dot(b, b))
    return jax.lax.fori_loop(0, steps, step, start)[0]


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Real inner products of images, shaped to multiply them: [B, 1, ...]."""
    axes = tuple(range(1, a.ndim))
    return jnp.sum((jnp.conj(a) * b).real, axes, keepdims=True)


def squared_norm(operator: Operator, like: jax.Array, steps: int = 20) -> jax.Array:
    """The largest |A v|^2 / |v|^2 [B, 1, 1, 1] over images v like [B, H, W, C], by power steps.

    At most the truth, and within a few per cent of it; 0 for zero, 1 for what is not linear.
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
