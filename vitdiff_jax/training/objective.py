"""What a training step minimises: objectives, and the random inputs of a step.

An objective is a loss of the parameters for a batch, or a microbatch on one device:

    loss(params, batch, step key, prepared) -> (value [], {name: more values})

all of them means over the examples. It may keep moments of what the network makes, the state's
`moments`: `prepared` is made of them before each step, on the host, and those of the batch, among
the values, are then added to them.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from vitdiff_jax.diffusion.average_velocity import AverageVelocity
from vitdiff_jax.diffusion.process import Process
from vitdiff_jax.interop.images import as_floats
from vitdiff_jax.models import conditions, layers
from vitdiff_jax.training.frechet import FrechetLoss

Batch = dict[str, jax.Array]
"""image [B, H, W, C], uint8 (latents: float32), index int32 [B] in the global batch, conditions."""


class Objective(Protocol):
    """See above."""

    def loss(
        self, params: Any, batch: Batch, key: jax.Array, prepared: Any
    ) -> tuple[jax.Array, dict[str, Any]]: ...
    def prepared(self, moments: Any) -> Any: ...
    def updated(self, moments: Any, batch: Any) -> Any: ...


class Denoising:
    """The loss of the process, or that of average velocities.

    batch_size: global. degradation: (images [B, H, W, C], keys [B]) -> hints; None: the batch has
    all conditions. average: learn average velocities; "loss" among the values is then the squared
    error without the adaptive weight.
    """

    def __init__(
        self,
        model,
        process: Process,
        distribution: Callable[..., jax.Array],
        *,
        batch_size: int,
        label_dropout: float = 0.1,
        stratified: bool = True,
        degradation: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
        average: AverageVelocity | None = None,
    ):
        # The other implementations of attention have no forward-mode derivative.
        self.model = model if average is None else model.clone(attention="einsum")
        self.process, self.distribution, self.average = process, distribution, average
        self.batch_size, self.stratified = batch_size, stratified
        self.label_dropout, self.degradation = label_dropout, degradation
        # A learned variance adds channels, which patches would mix with the others.
        self.patch = 0 if process.learned_variance else getattr(model, "patch", 0)

    def loss(self, params, batch, key, prepared):
        x, eps, t, cond_keys, dropout_keys = sample_inputs(
            self.process, batch, self.distribution, key, self.batch_size, self.stratified,
            self.patch,
        )  # fmt: skip
        if self.degradation is not None:
            keys = degradation_keys(key, batch["index"])
            batch = batch | {"hint": self.degradation(as_floats(batch["image"]), keys)}
        cond = conditions.drop(cond_of(self.model, batch), cond_keys, self.label_dropout)

        def network(x_t, time, cond=cond):
            images = from_patches(x_t, self.patch, batch["image"].shape)
            out = self.model.apply({"params": params}, images, time, cond, dropout_keys)
            return to_patches(out, self.patch)

        if self.average is None:
            out = self.process.call(network, self.process.add_noise(x, eps, t), t)
            return self.process.loss(out, x, eps, t).mean(), {}
        keys = interval_keys(key, batch["index"])
        times = self.average.earlier(self.distribution, self.process, keys, t)
        null = functools.partial(network, cond=conditions.null_cond(cond))
        losses, errors = self.average.loss(self.process, network, null, x, eps, *times)
        return losses.mean(), {"loss": errors.mean()}

    def prepared(self, moments):
        return ()

    def updated(self, moments, batch):
        return moments


class OneCall:
    """The Fréchet distance of images that are made in one network call, see `frechet`."""

    def __init__(
        self, model, process: Process, frechet: FrechetLoss, average: AverageVelocity | None = None
    ):
        self.model, self.process, self.frechet, self.average = model, process, frechet, average

    def images(self, params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict]:
        """(generated images with the conditions of a batch, these conditions)."""
        shape = batch["image"].shape[1:]
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["index"])
        eps = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        t = jnp.ones(len(eps))
        cond = cond_of(self.model, batch)

        def network(x_t, time):
            return self.model.apply({"params": params}, x_t, time, cond)

        to = None if self.average is None else jnp.zeros(())
        x_t = self.process.add_noise(jnp.zeros_like(eps), eps, t)
        return self.process.denoiser(network, to)(x_t, t), cond

    def loss(self, params, batch, key, prepared):
        value, moments = self.frechet(*self.images(params, batch, key), prepared)
        distances = {f"frechet/{name}": distance for name, (_, _, distance) in prepared.items()}
        return value, {"moments": moments, "loss": sum(distances.values())} | distances

    def prepared(self, moments):
        return self.frechet.maps(jax.device_get(moments))

    def updated(self, moments, batch):
        return self.frechet.updated(moments, batch)


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


def interval_keys(key: jax.Array, index: jax.Array) -> jax.Array:
    """Keys [B] for the other ends of time intervals, see `average_velocity`; `key`: of the step."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i), 5))(index)


def cond_of(model, batch: Batch) -> conditions.Cond:
    """The conditions of a batch that the model takes."""
    return {name: batch[name] for name in model.conditions}


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
