"""The training state and one functional training step.

The same `train_step(state, batch)` is compiled by jit (data parallel or FSDP) or by pmap, see
`parallel`. Every random draw comes from fold_in(fold_in(key(seed), step), index), where `index` is
an example's place in the global batch: the result does not depend on how the batch is cut.
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
"""image [B, H, W, C], uint8 or float32 as latents are, index int32 [B] (place in the global batch),
and the conditions."""


class TrainState(flax.struct.PyTreeNode):
    """All that training changes. `ema` maps the names of `averages` to parameters."""

    step: jax.Array  # int32: steps taken; data order and randomness follow from it
    bad_steps: jax.Array  # int32: the last so many steps had a non-finite loss or gradient
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
        raise ValueError(f"decay: {decay!r} is none of constant, cosine")
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
    """AdamW (arXiv:1711.05101) after clipping by the global norm (`clip`; 0: none).

    Weight decay is for matrices only, not for biases, norms and embeddings.
    """
    adam = optax.adamw(
        rate,
        b1=b1,
        b2=b2,
        eps=eps,
        weight_decay=weight_decay,
        mask=lambda params: jax.tree_util.tree_map_with_path(_is_kernel, params),
    )
    return optax.chain(optax.clip_by_global_norm(clip), adam) if clip else adam


def _is_kernel(path, _) -> bool:
    """Whether a parameter is the matrix of a product."""
    return path[-1].key.endswith("kernel")


def cast_kernels(params: Any, dtype: str) -> Any:
    """Parameters with their matrices in this type, as the network casts each of them itself."""
    return jax.tree_util.tree_map_with_path(
        lambda path, a: a.astype(dtype) if _is_kernel(path, a) else a, params
    )


def make_init(
    model, optimizer: optax.GradientTransformation, names: Sequence[str], seed: int, shape
) -> Callable[[], TrainState]:
    """A function of nothing that makes the first state, for jit to compile; names: of averages."""

    def init():
        image, time = jnp.zeros((1, *shape)), jnp.zeros(1)
        cond = conditions.blank(model.conditions, 1, *shape[:2])
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
    """Quantiles [B] in (0, 1), one per key; stratified: image `index` of `batch` has its share.

    The variance of a stratified batch's mean loss is lower (arXiv:2107.00630, appendix I.1).
    """
    u = jax.vmap(lambda key: jax.random.uniform(key, minval=1e-6, maxval=1 - 1e-6))(keys)
    # In float32 the last share may round to 1, which the distributions' inverses do not take.
    return jnp.minimum((index + u) / batch, 1 - 2**-24) if stratified else u


def draw(
    process: Process,
    batch: Batch,
    distribution,
    key: jax.Array,
    size: int,
    stratified: bool,
    patch: int = 0,
):
    """What a step draws for each example: (x, eps, t, condition keys, dropout keys), [B] first.

    key: of this step; size: of the global batch. patch: x and eps come as `in_patches`.
    """
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 4))(batch["index"])
    x = as_floats(in_patches(batch["image"], patch))
    eps = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(keys[:, 0])
    t = distribution(quantiles(keys[:, 1], batch["index"], size, stratified), process.schedule)
    return x, eps, t, keys[:, 2], keys[:, 3]


def in_patches(images: jax.Array, patch: int) -> jax.Array:
    """Images [B, H, W, C] as [B, N, 1, p p C], with the same mean of anything; 0: as they are.

    A TPU pads three channels to 128 lanes, or takes the batch for lanes: of JiT-B's step on a v5e
    (64 images, 91 ms) 6.1 ms were outside of its blocks, and in patches 3.8 are.
    """
    return layers.patchify(images, patch)[:, :, None] if patch else images


def from_patches(x: jax.Array, patch: int, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `in_patches`, for images of this shape [B, H, W, C]."""
    return layers.unpatchify(x[:, :, 0], patch, *shape[1:3]) if patch else x


def degradation_keys(key: jax.Array, index: jax.Array) -> jax.Array:
    """A key [B] for each example's degradation; `key`: of this step."""
    # The fifth of the keys that `draw` splits four of.
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i), 4))(index)


def cond_of(model, batch: Batch) -> conditions.Cond:
    """The conditions in a batch that the model takes."""
    return {name: batch[name] for name in model.conditions}


def accumulated(grad: Callable, count: int) -> Callable:
    """grad(params, batch, key, share) as the sum over `count` parts of the batch, in turn."""
    if count == 1:
        return grad

    def summed(params, batch, key, share):
        # Every count-th example makes a part: each device keeps its own examples.
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
    spread: Callable[[Callable], Callable] = lambda of: functools.partial(of, share=1.0),
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """One training step as a function (state, batch) -> (state, metrics).

    batch_size: of the global batch; `accumulate` parts of it are run one after the other.
    gradient_dtype: "bfloat16": matrices are cast once before the network, so that their gradients
    and what is sent between devices are bfloat16 too.
    degradation: (images [B, H, W, C], keys [B]) -> their hints; None: the batch has all conditions.
    spread: what makes the gradient that a device has computed that of the global batch, where XLA
    does not: see `parallel.by_shard_map`, `parallel.by_pmap`.
    A step with a non-finite loss or gradient changes nothing but the counters.
    """
    # A learned variance comes as more channels, which patches would mix with the others.
    patch = 0 if process.learned_variance else getattr(model, "patch", 0)

    def loss(params, part, step_key, share):
        x, eps, t, cond_keys, dropout_keys = draw(
            process, part, distribution, step_key, batch_size, stratified, patch
        )
        if degradation is not None:
            images = as_floats(part["image"])
            part = part | {"hint": degradation(images, degradation_keys(step_key, part["index"]))}
        cond = conditions.drop(cond_of(model, part), cond_keys, label_dropout)
        x_t = process.noise(x, eps, t)
        scale, time = process.schedule.network_input(t)
        inputs = from_patches(scale[:, None, None, None] * x_t, patch, part["image"].shape)
        out = model.apply({"params": params}, inputs, time, cond, dropout_keys)
        return share * process.loss(in_patches(out, patch), x, eps, t).mean()

    gradient = accumulated(jax.value_and_grad(loss), accumulate)

    def train_step(state, batch):
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)
        params = cast_kernels(state.params, gradient_dtype)
        value, grads = spread(gradient)(params, batch, step_key)
        new, norm = advanced(optimizer, state, value, grads)
        metrics = {"loss": value, "grad_norm": norm, "learning_rate": rate(state.step)}
        return new, metrics | {"bad_steps": new.bad_steps}

    return train_step


def advanced(
    optimizer: optax.GradientTransformation, state: TrainState, value: jax.Array, grads: Any
) -> tuple[TrainState, jax.Array]:
    """(the state after a step with this loss and gradient, the gradient's norm).

    grads: of the parameters' types or shorter ones. Where the loss or the norm is not finite
    nothing changes but the counters.
    """

    def as_params(grads):  # twice: what passes into the branch below goes through the memory
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

    # A branch, not a `where` on each array: 8 % of a DiT-S-sized step on a CPU.
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
    """A function (params, batch) -> loss [levels] on held-out images, labels given.

    Level i noises every image to t = distribution((i + 0.5) / levels): equally likely in training.
    The noise depends on the example's index alone, so that runs and steps are comparable.
    """

    def heldout_step(params, batch):
        key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)
        x, eps, _, _, _ = draw(process, batch, distribution, key, levels, False)

        def level(u):
            t = jnp.broadcast_to(distribution(u, process.schedule), x.shape[:1])
            scale, time = process.schedule.network_input(t)
            x_t = process.noise(x, eps, t)
            scaled = scale[:, None, None, None] * x_t
            out = model.apply({"params": params}, scaled, time, cond_of(model, batch))
            return process.loss(out, x, eps, t).mean()

        return jax.lax.map(level, heldout_quantiles(levels))

    return heldout_step


def heldout_quantiles(levels: int) -> jax.Array:
    """The quantiles of the training distribution at which `make_heldout_step` measures."""
    return (jnp.arange(levels) + 0.5) / levels
