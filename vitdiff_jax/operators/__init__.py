"""How images are degraded: masks, blur, JPEG, ..., one file each.

Each file has

    make(shape, rng, **options) -> operator

shape: of the clean images, (height, width, channels). rng: for what is drawn at random, such as a
mask; one operator is drawn, the same for a whole batch. An operator is a frozen dataclass and a
pytree, so that it can go through `jit`, and says only its forward map:

    operator.forward(x) -> y     x float32 [B, H, W, C] in [-1, 1], y [B, ...], complex for MRI
    operator.linear              whether it is

The adjoint follows (`adjoint`): adjoints written by hand are where published codes are wrong. Where
there is a cheap one, an operator also has `pseudo_inverse(y)`, or `svd()` (see `svd.py`). If there
is none and y has all but lost what is fine, as in tomography, it says `ill_posed = True`: steps
down a slope will not bring that back, solving will.
Units are those of [-1, 1], of noise too.
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
    """What `make` returns."""

    @property
    def linear(self) -> bool: ...

    def forward(self, x: jax.Array) -> jax.Array: ...


def make(name: str, shape: Shape, rng: np.random.Generator, **options: Any) -> Operator:
    """The operator of that name; impossible names and options are a ValueError that says so.

    A dotted name is a module outside the package. A number is a text where an option is one:
    subsampling=420.
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
    except TypeError as error:  # an option that it does not have
        raise ValueError(f"{name}: {error}") from error


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def register(cls):
    """A frozen dataclass as a pytree; fields marked `static` are part of the program."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)
    meta = [f.name for f in fields if f.metadata.get("static")]
    data = [f.name for f in fields if f.name not in meta]
    return jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=meta)


def static(**how: Any) -> Any:
    """A field that is no array."""
    return dataclasses.field(metadata={"static": True}, **how)


def adjoint(operator: Operator, y: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A^* y, float [B, *shape]: the transpose of the forward map, conjugated on the way.

    Raises ValueError if the operator is not linear.
    """
    if not operator.linear:
        raise ValueError(f"{type(operator).__name__} is not linear and has no adjoint")
    real = jnp.finfo(y.dtype).dtype
    x = jax.ShapeDtypeStruct((len(y), *shape), real)
    (found,) = jax.linear_transpose(operator.forward, x)(jnp.conj(y))
    return jnp.conj(found)
