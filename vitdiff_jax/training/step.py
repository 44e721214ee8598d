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

from vitdiff_jax.diffusion.process import Process
from vitdiff_jax.experiment import ema as ema_lib
from vitdiff_jax.interop.images import as_floats
from vitdiff_jax.models import conditions, layers

Batch = dict[str, jax.Array]
"""image [B, H, W, C], uint8 (latents: float32), index int32 [B] in the global batch, conditions."""


class TrainState(flax.struct.PyTreeNode):
    """Everything that training updates. `ema` maps names, see `experiment.ema`, to parameters."""

    step: jax.Array  # int32: steps taken; determines data order and randomness
    bad_steps: jax.Array  # int32: consecutive steps with non-finite loss or gradient
    params: Any
    opt_state: Any
    ema: dict[str, Any]


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
    model, optimizer: optax.GradientTransformation, names: Sequence[str], seed: int, shape
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
        )

    return init


def quantiles(keys: jax.Array, index: jax.Array, batch: int, stratified: bool) -> jax.Array:
    """Uniform quantiles [B] in (0, 1), one per key; stratified: example `index` in stratum `index`.

    Stratification lowers the variance of a batch's mean loss (arXiv:2107.00630, appendix I.1).
    """
    u = jax.vmap(lambda key: jax.random.uniform(key, minval=1e-6, maxval=1 - 1e-6))(keys)
    # In float32 the last stratum may round to 1, where inverse CDFs are infinite.
    return jnp.minimum((index + u) / batch, 1 - 2**-24) if stratified else u


def sample_inputs(
    process: Process,
    batch: Batch,
    distribution,
    key: jax.Array,
    size: int,
    stratified: bool,
    patch: int = 0,
):
    """The random inputs of a step: (x, eps, t, condition keys, dropout keys), with B leading.

    key: of the step; size: global batch size. patch: x and eps are returned as by `to_patches`.
    """
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 4))(batch["index"])
    x = as_floats(to_patches(batch["image"], patch))
    eps = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(keys[:, 0])
    t = distribution(quantiles(keys[:, 1], batch["index"], size, stratified), process.schedule)
    return x, eps, t, keys[:, 2], keys[:, 3]


def to_patches(images: jax.Array, patch: int) -> jax.Array:
    """Images [B, H, W, C] as patches [B, N, 1, p p C], which leaves means unchanged; 0: no patches.

    A TPU pads three channels to 128 lanes, or puts the batch on the lanes: in a training step of
    JiT-B on a v5e (64 images, 91 ms), 6.1 ms were spent outside the blocks; 3.8 ms with patches.
    """
    return layers.patchify(images, patch)[:, :, None] if patch else images


def from_patches(x: jax.Array, patch: int, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `to_patches`; shape: [B, H, W, C]."""
    return layers.unpatchify(x[:, :, 0], patch, *shape[1:3]) if patch else x


def degradation_keys(key: jax.Array, index: jax.Array) -> jax.Array:
    """Keys [B] for the degradations; `key`: of the step."""
    # Not one of the four keys that `sample_inputs` splits off.
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i), 4))(index)


def cond_of(model, batch: Batch) -> conditions.Cond:
    """The conditions of a batch that the model takes."""
    return {name: batch[name] for name in model.conditions}


def accumulate_gradients(grad: Callable, count: int) -> Callable:
    """grad(params, batch, key, share), accumulated over `count` sequential microbatches."""
    if count == 1:
        return grad

    def summed(params, batch, key, share):
        # Strided microbatches, so that each device keeps its own examples.
        parts = jax.tree.map(lambda a: a.reshape(-1, count, *a.shape[1:]).swapaxes(0, 1), batch)

        def add(total, part):
            return jax.tree.map(jnp.add, total, grad(params, part, key, share / count)), None

        zero = (jnp.zeros(()), jax.tree.map(lambda a: jnp.zeros(a.shape), params))
        return jax.lax.scan(add, zero, parts)[0]

    return summed


def make_train_step(
    model,
    process: Process,
    distribution: Callable[..., jax.Array],
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    *,
    seed: int,
    batch_size: int,
    label_dropout: float = 0.1,
    stratified: bool = True,
    accumulate: int = 1,
    gradient_dtype: str = "float32",
    degradation: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    data_parallel: Callable[[Callable], Callable] = lambda of: functools.partial(of, share=1.0),
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """One training step as a function (state, batch) -> (state, metrics).

    batch_size: global; processed in `accumulate` sequential microbatches.
    gradient_dtype: with "bfloat16", weight matrices are cast once before the network, so that their
    gradients, and the communication between devices, are bfloat16 too.
    degradation: (images [B, H, W, C], keys [B]) -> hints; None: the batch has all conditions.
    data_parallel: turns the gradient function of a device into that of the global batch, where XLA
    does not do so itself: `parallel.by_shard_map` or `parallel.by_pmap`.
    A step with a non-finite loss or gradient updates only the counters.
    """
    # A learned variance adds channels, which patches would mix with the others.
    patch = 0 if process.learned_variance else getattr(model, "patch", 0)

    def loss(params, part, step_key, share):
        x, eps, t, cond_keys, dropout_keys = sample_inputs(
            process, part, distribution, step_key, batch_size, stratified, patch
        )
        if degradation is not None:
            images = as_floats(part["image"])
            part = part | {"hint": degradation(images, degradation_keys(step_key, part["index"]))}
        cond = conditions.drop(cond_of(model, part), cond_keys, label_dropout)
        x_t = process.add_noise(x, eps, t)
        scale, time = process.schedule.network_input(t)
        inputs = from_patches(scale[:, None, None, None] * x_t, patch, part["image"].shape)
        out = model.apply({"params": params}, inputs, time, cond, dropout_keys)
        return share * process.loss(to_patches(out, patch), x, eps, t).mean()

    gradient = accumulate_gradients(jax.value_and_grad(loss), accumulate)

    def train_step(state, batch):
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)
        params = cast_kernels(state.params, gradient_dtype)
        value, grads = data_parallel(gradient)(params, batch, step_key)
        new, norm = apply_gradients(optimizer, state, value, grads)
        metrics = {"loss": value, "grad_norm": norm, "learning_rate": rate(state.step)}
        return new, metrics | {"bad_steps": new.bad_steps}

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
    )
    return new, norm


def make_heldout_step(
    model, process: Process, distribution: Callable[..., jax.Array], levels: int, *, seed: int
) -> Callable[[Any, Batch], tuple[jax.Array, jax.Array]]:
    """A function (params, batch) -> conditional loss [levels] on held-out images.

    At level i every image is noised to t = distribution((i + 0.5) / levels), a quantile of the
    timestep distribution. The noise depends only on the example's index, so that runs and steps are
    comparable.
    """

    def heldout_step(params, batch):
        key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)
        x, eps, _, _, _ = sample_inputs(process, batch, distribution, key, levels, False)

        def level(u):
            t = jnp.broadcast_to(distribution(u, process.schedule), x.shape[:1])
            scale, time = process.schedule.network_input(t)
            x_t = process.add_noise(x, eps, t)
            scaled = scale[:, None, None, None] * x_t
            out = model.apply({"params": params}, scaled, time, cond_of(model, batch))
            return process.loss(out, x, eps, t).mean()

        return jax.lax.map(level, heldout_quantiles(levels))

    return heldout_step


def heldout_quantiles(levels: int) -> jax.Array:
    """The quantiles of the timestep distribution at which `make_heldout_step` evaluates."""
    return (jnp.arange(levels) + 0.5) / levels
