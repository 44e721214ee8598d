"""Sampling images from a model: config.sample, compiled.

Image i depends on the seed `seed + i` alone: the same seed gives the same image (up to rounding) in
any batch and on any number of devices, and shows how a sample evolves during training.

Parameters are passed in float32 even if matrix products are in bfloat16: XLA hoists the casts out
of the sampling loop (compiled for a TPU v5e, a ViT's loop carries 42 bfloat16 matrices, and no
float32 ones).
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vitdiff_jax import samplers
from vitdiff_jax.data import gather, pipeline
from vitdiff_jax.data.pipeline import Dataset
from vitdiff_jax.diffusion import Denoise, guidance
from vitdiff_jax.diffusion.schedules import Schedule
from vitdiff_jax.diffusion.threshold import threshold
from vitdiff_jax.experiment import codec as codec_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment.build import Experiment, config_errors
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference.prompts import Cond
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.interop.sheets import Sheet
from vitdiff_jax.models.conditions import null_cond
from vitdiff_jax.runtime import parallel

SampleFn = Callable[[Any, np.ndarray, Cond], np.ndarray]


class SamplingError(RuntimeError):
    """Sampling that failed; the message is one line."""


def make_sample_fn(
    experiment: Experiment, options: ConfigDict, mesh: jax.sharding.Mesh,
    *, latents: bool = False, frames: int = 0,
) -> SampleFn:  # fmt: skip
    """Compile config.sample into (weights, seeds [N], cond) -> uint8 images [N, H, W, C].

    weights: (parameters, parameters of `experiment.guide` or None). One call of the compiled loop
    samples `options.batch` images, sharded over all devices.
    latents: return the float32 latents of a latent model, not decoded. frames: return that many
    frames of each sampling trajectory, [N, frames, H, W, C], evenly spaced on the grid.
    """
    if frames < 0 or frames == 1:
        raise ConfigError(f"frames: {frames} is neither 0 (none) nor at least 2")
    times = _times(experiment, options)
    sharding = parallel.batch_sharding(mesh)
    sample = _sampler(experiment, options)
    of_latents = experiment.config.latent.factor > 1
    codec = _codec(experiment.config.latent) if of_latents and not latents else None

    @functools.partial(parallel.WithMesh, mesh)
    @functools.partial(jax.jit, out_shardings=parallel.replicated(mesh))
    def sample_batch(weights, seeds, cond):
        seeds, cond = jax.lax.with_sharding_constraint((seeds, cond), sharding)
        x, keys = initial_noise(experiment.process.schedule, seeds, experiment.shape)
        with samplers.record_trajectory() if frames else contextlib.nullcontext([]) as path:
            x = sample(weights, cond, times, x, keys)
        finite = jnp.isfinite(x).all((1, 2, 3))
        if frames and not path:
            raise ConfigError(f"frames: {options.sampler.name} records no trajectory")
        x = _chosen(path[0], frames, experiment, times) if frames else x
        return x if of_latents else image_lib.to_uint8(x), finite

    def sample_all(weights, seeds, cond):
        batch = batch_size(options.batch, len(seeds), mesh)
        parts, first = [], 0
        inputs = padded_batches((seeds.astype(np.uint32), cond), batch)
        for images, finite in dispatch_ahead(lambda part: sample_batch(weights, *part), inputs):
            finite = np.asarray(finite)[: len(seeds) - first]
            if not finite.all():
                seed = seeds[first + int(finite.argmin())]
                raise SamplingError(
                    f"the sample of seed {seed} is not finite: the parameters are not, or"
                    f" config.sample.guidance={options.guidance} is too large"
                )
            parts.append(_decoded(codec, images) if codec else np.asarray(images))
            first += batch
        return np.concatenate(parts)[: len(seeds)]

    return sample_all


def _times(experiment: Experiment, options: ConfigDict) -> np.ndarray:
    """The sampling times: config.sample.grid with config.sample.steps."""
    grid, grid_options = config_lib.component(ConfigDict({"sample": options}), "sample.grid")
    with config_errors("config.sample."):
        return grid(experiment.process.schedule, options.steps, **grid_options)


def _sampler(experiment: Experiment, options: ConfigDict) -> Callable[..., jax.Array]:
    """(weights, cond, times, x, keys) -> x, by config.sample except for its grid."""
    sampler, given = config_lib.component(ConfigDict({"sample": options}), "sample.sampler")
    process = experiment.process
    needed = inspect.signature(sampler).parameters
    needs_variance, needs_ends = "variance" in needed, "denoise_to" in needed
    denoise_of = guided(experiment, options, batched=not needs_variance)
    if needs_variance and not process.learned_variance:
        raise ConfigError(
            f"config.sample.sampler.name: {options.sampler.name} needs a model with learned"
            " variance (config.diffusion.learned_variance); ancestral does not"
        )
    for which in filter(None, (experiment, experiment.guide)):
        if needs_ends and not which.average:
            raise ConfigError(
                f"config.sample.sampler.name: {options.sampler.name} needs a model with average"
                " velocities (config.diffusion.average_velocity), and so must be one that"
                " guides it; euler does not"
            )
    if options.threshold != "none" and experiment.config.latent.factor > 1:
        raise ConfigError("config.sample.threshold: not for latents, which have no fixed range")
    with config_errors("config.sample."):
        threshold(lambda x_t, t: x_t, options.threshold, options.threshold_quantile)  # or raises

    def sample(weights, cond, times, x, keys):
        def denoise_to(x_t, t, s=None):
            denoise = denoise_of(weights, cond, s)
            return threshold(denoise, options.threshold, options.threshold_quantile)(x_t, t)

        denoise, extra = denoise_to, {}
        if needs_ends:
            extra["denoise_to"] = denoise_to
        if needs_variance:
            extra["variance"] = process.variance(experiment.network(weights[0], cond))
        try:
            return sampler(denoise, process.schedule, times, x, keys, **given, **extra)
        except ValueError as error:
            if str(error).partition(":")[0] in given:
                raise ConfigError(f"config.sample.sampler.{error}") from error
            raise

    return sample


def _chosen(path: jax.Array, frames: int, experiment: Experiment, times: np.ndarray) -> jax.Array:
    """Frames [B, frames, H, W, C] of a trajectory x_t [T, B, H, W, C], scaled to equal contrast."""
    which = np.linspace(0, len(path) - 1, frames).round().astype(int)
    at = jnp.asarray(np.append(times, 0.0)[which], path.dtype)
    alpha, sigma = experiment.process.schedule.alpha_sigma(at)
    scale = jnp.where(which == len(path) - 1, 1, jax.lax.rsqrt(alpha**2 + sigma**2))
    return (path[which] * scale[:, None, None, None, None]).swapaxes(0, 1)


def _codec(config: ConfigDict) -> codec_lib.Codec:
    """The autoencoder that decodes the samples of a latent model."""
    if not config.autoencoder:
        raise ConfigError(
            "config.latent.autoencoder: required to decode the samples of this latent model: the"
            " weights of its autoencoder, diffusers' AutoencoderKL; the latents themselves are"
            " written by --mode=sample --latents"
        )
    return codec_lib.load(config.autoencoder, config.factor)


def _decoded(codec: codec_lib.Codec, z: jax.Array) -> np.ndarray:
    """Decode replicated latents, a shard on each process."""
    mine = pipeline.shard(0, len(z), jax.process_index(), jax.process_count())
    return gather.allgather(np.asarray(codec.decode(np.asarray(z)[mine])), len(z))


def guided(
    experiment: Experiment, options: ConfigDict, *, batched: bool = True
) -> Callable[..., Denoise]:
    """(weights, cond) -> the denoiser with the guidance of config.sample; see `make_sample_fn`.

    A third argument, an earlier time [], is the `to` of `Process.denoiser`.
    batched: evaluate the conditional and the unconditional prediction in one network call.
    """
    guide = experiment.guide
    learned = experiment.config.diffusion.label_dropout > 0 or not experiment.conditions
    if options.guidance != 1 and not guide and not learned:
        raise ConfigError(
            f"config.sample.guidance: {options.guidance} needs a null condition, but this model was"
            " trained without one (config.diffusion.label_dropout=0); use 1, or guide_with"
        )
    how = dict(channels=options.guidance_channels, rescale=options.guidance_rescale)
    low, high = options.guidance_low, options.guidance_high
    with config_errors("config.sample.guidance_"):
        guidance.guide(lambda x_t, t: x_t, lambda x_t, t: x_t, options.guidance, **how)  # or raises

    def denoise_of(weights, cond, to=None):
        params, guide_params = weights
        denoiser = functools.partial(experiment.denoiser, params, to=to)
        null = null_cond(cond)
        other = guide.denoiser(guide_params, cond, to) if guide else denoiser(null)
        both = guidance.batched(denoiser, cond, null) if batched and not guide else None
        return guidance.guide(denoiser(cond), other, options.guidance, low, high, both=both, **how)

    return denoise_of


def initial_noise(
    schedule: Schedule, seeds: jax.Array, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """(x [N, *shape] at t = 1, keys [N] for the sampler), each from its seed of seeds [N]."""
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(seeds)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys[:, 0])
    _, sigma = schedule.alpha_sigma(jnp.ones(()))
    return sigma * noise, keys[:, 1]


def batch_size(limit: int, count: int, mesh: jax.sharding.Mesh) -> int:
    """Size of equal batches of about `limit` for `count` images, a multiple of the devices."""
    calls = -(-count // limit)
    return -(-count // (calls * mesh.size)) * mesh.size


def padded_batches(inputs: Any, batch: int) -> Iterator[Any]:
    """Arrays [N, ...] in batches of size `batch`, the last one padded with zeros."""
    count = len(jax.tree.leaves(inputs)[0])
    padding = -count % batch
    inputs = jax.tree.map(lambda a: np.pad(a, [(0, padding)] + [(0, 0)] * (a.ndim - 1)), inputs)
    for first in range(0, count, batch):
        yield jax.tree.map(lambda a, i=first: a[i : i + batch], inputs)


def dispatch_ahead(run: Callable[[Any], Any], inputs: Iterable[Any]) -> Iterator[Any]:
    """run(x) for each input, dispatching the next call before yielding a result.

    JAX dispatches asynchronously, so devices compute while the host processes results. Even where
    both share two CPU cores, sampling and writing PNG files became 7 % faster.
    """
    pending = []
    for x in inputs:
        pending.append(run(x))
        if len(pending) > 1:
            yield pending.pop(0)
    yield from pending


def class_names(conditions: Mapping[str, Any], cond: Cond) -> list[str]:
    """The class of each image, "" for none; [] where a model knows no classes."""
    names = conditions.get("label", ())
    return [names[i] if i >= 0 else "" for i in cond["label"]] if names else []


def samples_sheet(images: np.ndarray, names: list[str], **about: Any) -> Sheet:
    """Samples uint8 [N, H, W, C] of classes; a few classes in turn have a column each."""
    count = len(dict.fromkeys(names))
    in_turn = names == (names[:count] * len(names))[: len(names)]
    columns = count if 1 < count <= 16 and in_turn else int(np.ceil(np.sqrt(len(images))))
    return Sheet("samples", images[:, None], columns, names, about)


def restored_sheet(images: np.ndarray, hint: np.ndarray, data: Dataset, **about: Any) -> Sheet:
    """Degraded, restored and original images of the held-out examples in turn."""
    count = len(data.heldout)
    originals = np.stack([data.heldout.example(i % count)["image"] for i in range(len(images))])
    threes = np.stack([image_lib.to_uint8(hint), images, originals], 1)  # [N, 3, H, W, C]
    return Sheet("restored", threes, max(1, round(np.sqrt(len(images) / 3))), about=about)
