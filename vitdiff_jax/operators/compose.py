"""Degradations in sequence: an old photograph is small, then grey, then scratched."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax import operators
from vitdiff_jax.operators import Operator, Shape, register, static


@register
class Composed:
    """parts: the first one is applied first."""

    parts: tuple[Any, ...]
    linear: bool = static()

    @property
    def ill_posed(self) -> bool:
        """Whether a part is."""
        return any(getattr(part, "ill_posed", False) for part in self.parts)

    def forward(self, x: jax.Array) -> jax.Array:
        for part in self.parts:
            x = part.forward(x)
        return x


def make(shape: Shape, rng: np.random.Generator, parts: Sequence[dict[str, Any]] = ()) -> Operator:
    """parts: each a dict with the "name" of an operator and its options."""
    if not parts:
        raise ValueError("parts: none are given")
    made = []
    for part in parts:
        options = dict(part)
        made.append(operators.make(options.pop("name"), shape, rng, **options))
        x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        found = jax.eval_shape(made[-1].forward, x)
        if part is not parts[-1] and (found.ndim != 4 or found.dtype != jnp.float32):
            raise ValueError(f"parts: what {part['name']} gives is no image; put it last")
        shape = found.shape[1:]
    return Composed(tuple(made), all(part.linear for part in made))
