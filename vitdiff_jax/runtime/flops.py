"""FLOPs of the matrix products of a function, counted in its jaxpr.

A multiply-add counts as two; everything else is ignored. These are the "model FLOPs" in model FLOPs
utilisation (MFU, arXiv:2204.02311, appendix B).
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def count(function: Callable, *arguments: Any) -> float:
    """FLOPs of function(*arguments), which may be shapes; loops count with their trip count."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        shapes = [v.aval.shape for v in (*equation.invars, *equation.outvars)]
        inside = [_count(one) for one in inner(params)]
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += 2 * math.prod(shapes[-1]) * math.prod(shapes[0][i] for i in contracted)
        elif name == "conv_general_dilated":
            outputs = shapes[1][params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(shapes[-1]) * math.prod(shapes[1]) / outputs
        elif name == "cond":
            total += max(inside)
        else:
            total += params.get("length", 1) * sum(inside) if name == "scan" else sum(inside)
    return total


def inner(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation."""
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else [value]:
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one
