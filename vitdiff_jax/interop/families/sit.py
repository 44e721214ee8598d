"""SiT, willisma/SiT (arXiv:2401.08740): DiT's network with velocity prediction, on latents.

Time runs from noise (0) to data (1), as in `network_input` of `RectifiedFlow` and `GVP`; so the
velocity has the opposite sign, and the last layer is negated. The published SiT-XL/2 also outputs
DiT's channels for learned variances, which were not trained and are ignored.
"""

import dataclasses
from typing import Any

import numpy as np

from vitdiff_jax.interop import rules as make
from vitdiff_jax.interop.families import dit
from vitdiff_jax.interop.rules import Constant, NetworkSpec, Rule, Shapes

SOURCE = "https://github.com/willisma/SiT"
LICENCE = "MIT"
ANCHOR, EMAS, EXTRAS = dit.ANCHOR, dit.EMAS, dit.EXTRAS

PATHS = {"linear": "RectifiedFlow", "gvp": "GVP"}


def read(
    shapes: Shapes,
    *,
    heads: int | None = None,
    size: tuple[int, int] | None = None,
    null_row: bool | None = None,
    path: str = "linear",
) -> NetworkSpec:
    """heads, size, null_row: as in `dit`; path: "linear" (published) or "gvp", which
    shapes do not determine.

    Velocity prediction, SiT's default, is assumed.
    """
    if path not in PATHS:
        raise ValueError(f"path: {path!r} is not one of {', '.join(PATHS)}")
    model, shape, conditions, has_null = dit.network(shapes, heads, size, null_row)
    diffusion: dict[str, Any] = dict(
        schedule=dict(name=PATHS[path]), prediction="u", loss_space="u", times=dict(name="uniform")
    )
    sample: dict[str, Any] = dict(
        sampler=dict(name="euler_maruyama", form="sigma"), grid=dict(name="linear", last=0.04),
        steps=250,
    )  # fmt: skip
    config = dit.complete(model, diffusion, sample, shape, has_null)
    return NetworkSpec(config, shape, conditions)


def rules(spec: NetworkSpec) -> list[Rule | Constant]:
    """The rules of DiT with the last layer negated."""
    model = make.model_of(spec, "dit", "u", PATHS.values())
    return [
        _negated(rule) if rule.theirs.startswith("final_layer.linear.") else rule
        for rule in dit.network_rules(model, spec)
    ]


def _negated(rule: Rule | Constant) -> Rule:
    assert isinstance(rule, Rule)
    to_ours, to_theirs = rule.to_ours, rule.to_theirs
    return dataclasses.replace(
        rule,
        to_ours=lambda a: [np.negative(part) for part in to_ours(a)],
        to_theirs=lambda *parts: np.negative(to_theirs(*parts)),
    )
