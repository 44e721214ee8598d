"""Composition of operators: an old photograph is downsampled, then grey, then scratched."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax import operators
from vitdiff_jax.operators import Operator, Shape, register, static


@register
class Composed:
    """parts: applied in order."""

    parts: tuple[Any, ...]
    linear: bool = static()

    @property
    def ill_posed(self) -> bool:
        """Whether any part is ill-posed."""
        return any(getattr(part, "ill_posed", False) for part in self.parts)

    def forward(self, x: jax.Array) -> jax.Array:
        for part in self.parts:
            x = part.forward(x)
        return x


def make(shape: Shape, rng: np.random.Generator, parts: Sequence[dict[str, Any]] = ()) -> Operator:
    """parts: for each operator a dict with its "name" and options."""
    if not parts:
        raise ValueError("parts: is empty")
    made = []
    for part in parts:
        options = dict(part)
        made.append(operators.make(options.pop("name"), shape, rng, **options))
        x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        found = jax.eval_shape(made[-1].forward, x)
        if part is not parts[-1] and (found.ndim != 4 or found.dtype != jnp.float32):
            raise ValueError(f"parts: the output of {part['name']} is not an image; put it last")
        shape = found.shape[1:]
    return Composed(tuple(made), all(part.linear for part in made))
