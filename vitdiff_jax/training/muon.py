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

    A convolution [..., C, D] is a matrix [... C, D]; scanned blocks are a matrix each.
    """
    return jax.tree_util.tree_map_with_path(_matrix, params)


def _matrix(path, a) -> MuonDimensionNumbers | None:
    *layer, _ = (key.key for key in path)
    first = int(bool(layer and STACKED.fullmatch(layer[0])))
    hidden = step_lib.is_kernel(path) and "/".join(layer) not in FIRST_AND_LAST
    if not hidden or a.ndim < first + 2:
        return None
    return MuonDimensionNumbers(tuple(range(first, a.ndim - 1)), a.ndim - 1)


def labels(params: Any) -> Any:
    """The optimiser of each parameter, "muon" or "adamw"."""
    return jax.tree_util.tree_map_with_path(
        lambda path, a: "adamw" if _matrix(path, a) is None else "muon", params
    )


def _rescaled(updates: Any) -> Any:
    """Orthogonal matrices times RMS sqrt(max(m, n))."""

    def rescale(path, a):
        inputs = [a.shape[i] for i in _matrix(path, a).reduction_axis]
        return RMS * max(np.prod(inputs), a.shape[-1]) ** 0.5 * a

    return jax.tree_util.tree_map_with_path(rescale, updates)


def summary(params: Any) -> str:
    """What is whose: "Muon for 30 arrays of 310,272 parameters, AdamW for the other 20,308"."""
    sizes = {"muon": [], "adamw": []}
    for label, a in zip(jax.tree.leaves(labels(params)), jax.tree.leaves(params), strict=True):
        sizes[label].append(int(np.prod(a.shape)))
    return (
        f"Muon for {len(sizes['muon']):,} arrays of {sum(sizes['muon']):,} parameters,"
        f" AdamW for the other {sum(sizes['adamw']):,}"
    )
