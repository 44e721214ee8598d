"""Muon (Jordan et al., kellerjordan.github.io/posts/muon, 2024): orthogonalised hidden updates.

The weight matrix W [m, n] with gradient G takes the steps

    M <- 0.95 M + G                                            momentum
    O ~= U V^T, where G + 0.95 M = U S V^T                     Nesterov's, orthogonalised
    W <- W - rate (0.2 sqrt(max(m, n)) O + weight_decay W)

The root makes the root mean square of each step about 0.2 rate, as AdamW's is (arXiv:2502.16982):
both take the same learning rate and weight decay. Embeddings, biases, norms, and the first and last
layers are AdamW's. Muon has one moment where AdamW has two.

`optax.contrib.muon` gives the others Nesterov's momentum too, and leaves sharded matrices to XLA,
which communicates up to 15 times for each; see `whole`.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, PartitionSpec

from vitdiff_jax.training import step as step_lib

FIRST, LAST = ("bottleneck_in", "patches", "in"), ("head", "final_conv")
"""Layers, by their place in a network, that read images or write them."""
NOT_HIDDEN = (*FIRST, "time/in", "interval/in", "conditions/embedding_out", *LAST)
"""These, and those that read times and conditions."""
STACKED = re.compile(r"blocks_\d+_to_\d+")
"""Scanned blocks, whose parameters have an axis of blocks in front, see `layers.run_blocks`."""
MOMENTUM, ITERATIONS, COEFFICIENTS = 0.95, 5, (3.4445, -4.7750, 2.0315)
RMS = 0.2
"""Root mean square of a step at rate 1."""


def muon(
    rate: optax.Schedule, *, weight_decay: float = 0.0, clip: float = 0.0, **others: float
) -> optax.GradientTransformation:
    """Muon for hidden matrices, `step.adamw` for all else, which takes the other options."""
    hidden = optax.chain(
        optax.trace(MOMENTUM, nesterov=True),
        optax.stateless(lambda m, _: jax.tree_util.tree_map_with_path(_orthogonal_step, m)),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(rate),
    )
    rest = step_lib.adamw(rate, weight_decay=weight_decay, **others)
    return optax.chain(
        step_lib.clipped(clip), optax.partition({"muon": hidden, "adamw": rest}, labels)
    )


def _orthogonal_step(path, a: jax.Array) -> jax.Array:
    """RMS sqrt(max(m, n)) O of momenta; scanned blocks, and convolutions as [... C, D], too."""
    matrices = whole(a).reshape(*a.shape[: _stacks(path)], -1, a.shape[-1])
    steps = RMS * max(matrices.shape[-2:]) ** 0.5 * orthogonalized(matrices)
    return whole(steps.reshape(a.shape))


def orthogonalized(x: jax.Array) -> jax.Array:
    """U V^T of matrices U S V^T [..., m, n], with singular values from 0.68 to 1.21 in place of 1.

    By Newton-Schulz iterations; those below 0.0015 of the Frobenius norm stay smaller.
    """
    if x.shape[-2] > x.shape[-1]:
        return orthogonalized(x.mT).mT
    a, b, c = COEFFICIENTS

    def iterate(_, x):
        square = x @ x.mT
        return a * x + (b * square + c * square @ square) @ x

    norm = jnp.linalg.norm(x, axis=(-2, -1), keepdims=True)
    return jax.lax.fori_loop(0, ITERATIONS, iterate, x / (norm + 1e-8))


def whole(a: jax.Array) -> jax.Array:
    """A copy of all of `a` on each device, as products of sharded matrices would need 15 times."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or set(mesh.axis_types) != {AxisType.Auto}:  # one device, or pmap
        return a
    return jax.lax.with_sharding_constraint(a, PartitionSpec())


def labels(params: Any) -> Any:
    """The optimiser of each parameter, "muon" or "adamw"."""
    return jax.tree_util.tree_map_with_path(
        lambda path, a: "muon" if _is_hidden(path, a) else "adamw", params
    )


def _is_hidden(path, a) -> bool:
    """Whether a parameter is the weight matrix of a hidden layer."""
    is_matrix = step_lib.is_kernel(path) and a.ndim - _stacks(path) >= 2
    return is_matrix and _layer(path) not in NOT_HIDDEN


def _layer(path) -> str:
    """The layer that a parameter belongs to, such as "block_0/attention"."""
    return "/".join(key.key for key in path[:-1])


def _stacks(path) -> int:
    """How many axes of a parameter count blocks."""
    return sum(bool(STACKED.fullmatch(key.key)) for key in path)


def summary(params: Any) -> str:
    """What is whose: "Muon for 30 arrays of 310,272 parameters, AdamW for the other 20,308"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    muons = [int(np.prod(a.shape)) for path, a in leaves if _is_hidden(path, a)]
    others = sum(int(np.prod(a.shape)) for _, a in leaves) - sum(muons)
    named = {_layer(path) for path, _ in leaves}
    known = named & {*FIRST} and named & {*LAST}
    return (
        f"Muon for {len(muons):,} arrays of {sum(muons):,} parameters, AdamW for the other"
        f" {others:,}{'' if known else '; the first and the last layer are not called in and head'}"
    )
