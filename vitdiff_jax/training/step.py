"""The training state and the functional training step.

The same `train_step(state, batch)` is compiled by jit (data parallel or FSDP) or by pmap, see
`runtime.parallel`. Every random number comes from fold_in(fold_in(key(seed), step), index), where
`index` is an example's index in the global batch: the result does not depend on the sharding.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vitdiff_jax.experiment import ema as ema_lib
from vitdiff_jax.models import conditions
from vitdiff_jax.training.objective import Objective


class TrainState(flax.struct.PyTreeNode):
    """Everything that training updates. `ema` maps names, see `experiment.ema`, to parameters."""

    step: jax.Array  # int32: steps taken; determines data order and randomness
    bad_steps: jax.Array  # int32: consecutive steps with non-finite loss or gradient
    params: Any
    opt_state: Any
    ema: dict[str, Any]
    moments: Any = flax.struct.field(default_factory=dict)  # of generated images, see `frechet`


def learning_rate(
    *, peak: float, warmup: int = 0, decay: str = "constant", steps: int
) -> optax.Schedule:
    """Linear warm-up from 0 over `warmup` steps, then constant, or cosine to 0 at `steps`."""
    if decay == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1))
    if decay != "constant":
        raise ValueError(f"decay: {decay!r} is not one of constant, cosine")
    return optax.linear_schedule(0.0, peak, warmup) if warmup else optax.constant_schedule(peak)


def adamw(
    rate: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW (arXiv:1711.05101) after clipping the global gradient norm to `clip` (0: no clipping).

    Weight decay applies to weight matrices only, not to biases, norms and embeddings.
    """
    adam = optax.adamw(
        rate,
        b1=b1,
        b2=b2,
        eps=eps,
        weight_decay=weight_decay,
        mask=lambda params: jax.tree_util.tree_map_with_path(lambda p, _: is_kernel(p), params),
    )
    return optax.chain(clipped(clip), adam)


def clipped(clip: float) -> optax.GradientTransformation:
    """Clips the global gradient norm to `clip`; 0: no clipping."""
    # The state is the same with and without clipping, so that a resumed run may change it.
    return optax.clip_by_global_norm(clip) if clip else optax.identity()


def is_kernel(path) -> bool:
    """Whether the parameter at this path of a tree is a weight matrix."""
    return path[-1].key.endswith("kernel")


def cast_kernels(params: Any, dtype: str) -> Any:
    """Parameters with weight matrices cast to `dtype`, as the network itself would cast them."""
    return jax.tree_util.tree_map_with_path(
        lambda path, a: a.astype(dtype) if is_kernel(path) else a, params
    )


def make_init(
    model,
    optimizer: optax.GradientTransformation,
    names: Sequence[str],
    seed: int,
    shape,
    moments: Callable[[], Any] = dict,
) -> Callable[[], TrainState]:
    """A function, to be jitted, that returns the initial state; names: of the EMAs."""

    def init():
        image, time = jnp.zeros((1, *shape)), jnp.zeros(1)
        cond = conditions.null_batch(model.conditions, 1, *shape[:2])
        params = model.init(jax.random.key(seed), image, time, cond)["params"]
        return TrainState(
            step=jnp.int32(0),
            bad_steps=jnp.int32(0),
            params=params,
            opt_state=optimizer.init(params),
            ema={name: jax.tree.map(jnp.copy, params) for name in names},
            moments=moments(),
        )

    return init


def accumulate_gradients(grad: Callable, count: int) -> Callable:
    """grad(params, batch, shared, share), accumulated over `count` sequential microbatches."""
    if count == 1:
        return grad

    def summed(params, batch, shared, share):
        # Strided microbatches, so that each device keeps its own examples.
        parts = jax.tree.map(lambda a: a.reshape(-1, count, *a.shape[1:]).swapaxes(0, 1), batch)

        def add(total, part):
            return jax.tree.map(jnp.add, total, grad(params, part, shared, share / count)), None

        first = jax.tree.map(lambda a: a[0], parts)
        values, _ = jax.eval_shape(grad, params, first, shared, share / count)
        zero = jax.tree.map(lambda a: jnp.zeros(a.shape), (values, params))
        return jax.lax.scan(add, zero, parts)[0]

    return summed


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    *,
    seed: int,
    accumulate: int = 1,
    gradient_dtype: str = "float32",
    data_parallel: Callable[[Callable], Callable] = lambda of: functools.partial(of, share=1.0),
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """One training step as a function (state, batch, prepared) -> (state, metrics).

    prepared: for the objective, see `objective`; () where it needs nothing.
    accumulate: sequential microbatches.
    gradient_dtype: with "bfloat16", weight matrices are cast once before the network, so that their
    gradients, and the communication between devices, are bfloat16 too.
    data_parallel: turns the gradient function of a device into that of the global batch, where XLA
    does not do so itself: `parallel.by_shard_map` or `parallel.by_pmap`.
    A step with a non-finite loss or gradient updates only the counters.
    """

    def value_and_gradient(params, part, shared, share):
        def loss(params):
            value, values = objective.loss(params, part, *shared)
            return share * value, jax.tree.map(lambda a: share * a, {"loss": value} | values)

        (_, values), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return values, grads

    gradient = accumulate_gradients(value_and_gradient, accumulate)

    def train_step(state, batch, prepared=()):
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)
        params = cast_kernels(state.params, gradient_dtype)
        values, grads = data_parallel(gradient)(params, batch, (step_key, prepared))
        new, norm = apply_gradients(optimizer, state, values["loss"], grads)
        moments = objective.updated(state.moments, values.pop("moments", {}))
        moments = jax.tree.map(lambda a, b: jnp.where(new.bad_steps, b, a), moments, state.moments)
        others = {"grad_norm": norm, "learning_rate": rate(state.step)}
        return new.replace(moments=moments), values | others | {"bad_steps": new.bad_steps}

    return train_step


def apply_gradients(
    optimizer: optax.GradientTransformation, state: TrainState, value: jax.Array, grads: Any
) -> tuple[TrainState, jax.Array]:
    """(the state after a step with this loss and gradient, the gradient norm).

    grads: in the parameters' dtypes or lower precision. If the loss or the norm is not finite, only
    the counters change.
    """

    def as_params(grads):  # called twice: an operand of the branch would be materialised
        return jax.tree.map(lambda g, p: g.astype(p.dtype), grads, state.params)

    norm = optax.tree.norm(as_params(grads))
    finite = jnp.isfinite(value) & jnp.isfinite(norm)

    def update():
        updates, opt_state = optimizer.update(as_params(grads), state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = {
            name: optax.incremental_update(params, old, 1 - ema_lib.decay(name, state.step))
            for name, old in state.ema.items()
        }
        return params, opt_state, ema

    def keep():
        return state.params, state.opt_state, state.ema

    # lax.cond instead of jnp.where on each array saves 8 % of a DiT-S-sized step on a CPU.
    params, opt_state, ema = jax.lax.cond(finite, update, keep)
    new = TrainState(
        step=state.step + 1,
        bad_steps=jnp.where(finite, 0, state.bad_steps + 1),
        params=params,
        opt_state=opt_state,
        ema=ema,
        moments=state.moments,
    )
    return new, norm
