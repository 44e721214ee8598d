"""Muon (Jordan et al., kellerjordan.github.io/posts/muon, 2024): hidden matrices step orthogonally.

In step i the weight matrix W [m, n] with gradient G takes, with b = 0.95,

    M <- b M + (1 - b) G                                       momentum
    N  = b M / (1 - b^(i+1)) + (1 - b) G / (1 - b^i)           Nesterov's, bias-corrected
    O ~= U V^T, where N = U S V^T                              five Newton-Schulz iterations
    W <- W - rate (0.2 sqrt(max(m, n)) O + weight_decay W)

The root makes the root mean square of each step about 0.2 rate, as AdamW's is (arXiv:2502.16982):
both take the same learning rate and weight decay. Embeddings, biases, norms, and the first and last
layers are AdamW's. Muon has one moment where AdamW has two.
"""

import re
from typing import Any

import jax
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from vitdiff_jax.training import step as step_lib

FIRST_AND_LAST = (
    "bottleneck_in", "patches", "in", "time/in", "conditions/embedding_out", "head", "final_conv",
)  # fmt: skip
"""Layers, by their place in a network, that read its inputs or write its output."""
STACKED = re.compile(r"blocks_\d+_to_\d+")
"""Scanned blocks, whose parameters have an axis of blocks in front, see `layers.run_blocks`."""
RMS = 0.2
"""Root mean square of a step at rate 1."""


def muon(
    rate: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip: float = 0.0,
) -> optax.GradientTransformation:
    """Muon for hidden matrices, AdamW with b1, b2 and eps for all else; see `step.adamw`."""
    hidden = optax.chain(
        scale_by_muon(weight_dimension_numbers=matrices),
        optax.stateless(lambda updates, _: _rescaled(updates)),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(rate),
    )
    rest = step_lib.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    return optax.chain(
        step_lib.clipped(clip), optax.partition({"muon": hidden, "adamw": rest}, labels)
    )


def matrices(params: Any) -> Any:
    """The axes of each hidden matrix (inputs, outputs) in a tree of parameters; None: none there.

    A convolution [..., C, D] is a matrix [... C, D]; scanned blocks have a matrix each.
    """

    def matrix(path, a):
        if not _is_hidden(path, a):
            return None
        return MuonDimensionNumbers(tuple(range(_stacks(path), a.ndim - 1)), a.ndim - 1)

    return jax.tree_util.tree_map_with_path(matrix, params)


def labels(params: Any) -> Any:
    """The optimiser of each parameter, "muon" or "adamw"."""
    return jax.tree_util.tree_map_with_path(
        lambda path, a: "muon" if _is_hidden(path, a) else "adamw", params
    )


def _is_hidden(path, a) -> bool:
    """Whether a parameter is the weight matrix of a hidden layer."""
    is_matrix = step_lib.is_kernel(path) and a.ndim - _stacks(path) >= 2
    return is_matrix and _layer(path) not in FIRST_AND_LAST


def _layer(path) -> str:
    """The layer that a parameter belongs to, such as "block_0/attention"."""
    return "/".join(key.key for key in path[:-1])


def _stacks(path) -> int:
    """How many axes of a parameter count blocks: 0 or 1."""
    return int(bool(STACKED.fullmatch(path[0].key)))


def _rescaled(updates: Any) -> Any:
    """Orthogonal matrices times RMS sqrt(max(m, n))."""

    def rescale(path, a):
        larger = max(np.prod(a.shape[_stacks(path) : -1]), a.shape[-1])
        return RMS * float(larger) ** 0.5 * a

    return jax.tree_util.tree_map_with_path(rescale, updates)


def summary(params: Any) -> str:
    """What is whose: "Muon for 30 arrays of 310,272 parameters, AdamW for the other 20,308"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    muons = [int(np.prod(a.shape)) for path, a in leaves if _is_hidden(path, a)]
    others = sum(int(np.prod(a.shape)) for _, a in leaves) - sum(muons)
    known = any(_layer(path) in FIRST_AND_LAST for path, _ in leaves)
    return (
        f"Muon for {len(muons):,} arrays of {sum(muons):,} parameters, AdamW for the other"
        f" {others:,}{'' if known else '; no layer is called in, patches or head'}"
    )
