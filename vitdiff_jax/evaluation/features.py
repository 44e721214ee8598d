"""The interface of differentiable features, for training by a Fréchet distance.

Files of metrics have a function `features(setting)` beside their `Metric`, if theirs can be had.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Features:
    """A frozen network: apply(params, images [B, H, W, C] in [-1, 1]) -> features [B, D]."""

    params: Any
    apply: Callable[[Any, jax.Array], jax.Array]
