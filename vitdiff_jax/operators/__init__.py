"""Degradation operators: masks, blur, JPEG, ..., one file each.

Each file has

    make(shape, rng, **options) -> operator

shape: (height, width, channels) of the clean images. rng: for random parts, such as a mask; one
operator is sampled for a whole batch. An operator is a frozen dataclass and a pytree, so that it
can be an argument of jitted functions, and defines only its forward map:

    operator.forward(x) -> y     x float32 [B, H, W, C] in [-1, 1], y [B, ...], complex for MRI
    operator.linear              whether the map is linear

The adjoint is derived from it (`adjoint`): hand-written adjoints are a common source of errors in
published code. Where a cheap one exists, an operator also has `svd()`, see `svd.py`. An operator
without one whose y hardly contains fine detail, as in tomography, sets `ill_posed = True`: gradient
steps do not recover such detail, solving the least-squares problem does.
All units are those of [-1, 1], including noise.
"""

import dataclasses
import importlib
import inspect
import pkgutil
from typing import Any, Protocol, dataclass_transform, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

Shape = tuple[int, int, int]


@runtime_checkable
class Operator(Protocol):
    """The interface of the operators that `make` returns."""

    @property
    def linear(self) -> bool: ...

    def forward(self, x: jax.Array) -> jax.Array: ...


def make(name: str, shape: Shape, rng: np.random.Generator, **options: Any) -> Operator:
    """The operator of this name. Raises ValueError for unknown names and invalid options.

    A dotted name is a module outside the package. Numbers are converted to strings for options that
    are strings: subsampling=420.
    """
    found = [module.name for module in pkgutil.iter_modules(__path__)]
    homes = {n: f"{__name__}.{n}" for n in found} | ({name: name} if "." in name else {})
    try:
        modules = {n: importlib.import_module(home) for n, home in homes.items()}
    except ImportError as error:
        raise ValueError(f"name: cannot use {name!r}: {error}") from error
    known = {n: module.make for n, module in modules.items() if hasattr(module, "make")}
    if name not in known:
        raise ValueError(f"name: there is no operator {name!r}, only {', '.join(known)}")
    texts = [
        key
        for key, parameter in inspect.signature(known[name]).parameters.items()
        if isinstance(parameter.default, str)
    ]
    options = {key: str(value) if key in texts else value for key, value in options.items()}
    try:
        return known[name](shape, rng, **options)
    except TypeError as error:  # an unknown option
        raise ValueError(f"{name}: {error}") from error


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def register(cls):
    """Make a class a frozen dataclass and a pytree; `static` fields are compile-time constants."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)
    meta = [f.name for f in fields if f.metadata.get("static")]
    data = [f.name for f in fields if f.name not in meta]

    def flatten(operator):
        keyed = [(jax.tree_util.GetAttrKey(name), getattr(operator, name)) for name in data]
        return keyed, tuple(getattr(operator, name) for name in meta)

    def unflatten(values, leaves):
        return cls(**dict(zip(meta, values)), **dict(zip(data, leaves)))

    # not register_dataclass: in JAX 0.10.2 two such classes with equal fields have equal treedefs,
    # and jit, now and then, takes the program of one for the other
    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


def static(**how: Any) -> Any:
    """A field that is not an array."""
    return dataclasses.field(metadata={"static": True}, **how)


def adjoint(operator: Operator, y: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A^* y, real [B, *shape]: conj(A^T conj(y)), by transposing the forward map.

    Raises ValueError if the operator is not linear.
    """
    if not operator.linear:
        raise ValueError(f"{type(operator).__name__} is not linear and has no adjoint")
    real = jnp.finfo(y.dtype).dtype
    x = jax.ShapeDtypeStruct((len(y), *shape), real)
    (found,) = jax.linear_transpose(operator.forward, x)(jnp.conj(y))
    return jnp.conj(found)
