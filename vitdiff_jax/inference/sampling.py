"""Drawing images with a model: config.sample, compiled.

Image i is drawn from the seed `seed + i` alone: the same seed gives the same image (to rounding)
in any batch, on any number of devices, and shows how one image changes over training.

Parameters go in as float32 even where the matrix products are bfloat16: XLA casts them once, before
the loop (compiled for a TPU v5e, a ViT's loop carries 42 bfloat16 matrices and none of float32).
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
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
from vitdiff_jax.experiment.build import Experiment, named
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference.prompts import Cond
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.models.conditions import not_told
from vitdiff_jax.runtime import parallel

SampleFn = Callable[[Any, np.ndarray, Cond], np.ndarray]


class SamplingError(RuntimeError):
    """Sampling that failed; the message is one line."""


def make_sample_fn(
    experiment: Experiment, options: ConfigDict, mesh: jax.sharding.Mesh,
    *, latents: bool = False, frames: int = 0,
) -> SampleFn:  # fmt: skip
    """Compile config.sample into (weights, seeds [N], cond) -> uint8 images [N, H, W, C].

    weights: (parameters, those of `experiment.guide` or None). One call of the compiled loop draws
    `options.batch` images, cut over all devices.
    latents: of a model of latents these, float32, not decoded. frames: so many pictures of each
    image's way instead, [N, frames, H, W, C], at times as even as the grid allows.
    """
    if frames < 0 or frames == 1:
        raise ConfigError(f"frames: {frames} is neither 0, for none, nor 2 or more")
    times = _times(experiment, options)
    sharding = parallel.batch_sharding(mesh)
    sample = _sampler(experiment, options)
    of_latents = experiment.config.latent.factor > 1
    codec = _codec(experiment.config.latent) if of_latents and not latents else None

    @functools.partial(parallel.InMesh, mesh)
    @functools.partial(jax.jit, out_shardings=parallel.replicated(mesh))
    def draw(weights, seeds, cond):
        seeds, cond = jax.lax.with_sharding_constraint((seeds, cond), sharding)
        x, keys = start(experiment.process.schedule, seeds, experiment.shape)
        with samplers.recording() if frames else contextlib.nullcontext([]) as path:
            x = sample(weights, cond, times, x, keys)
        finite = jnp.isfinite(x).all((1, 2, 3))
        if frames and not path:
            raise ConfigError(f"frames: {options.sampler.name} does not show its way")
        x = _chosen(path[0], frames, experiment, times) if frames else x
        return x if of_latents else image_lib.to_uint8(x), finite

    def draw_all(weights, seeds, cond):
        batch = batch_size(options.batch, len(seeds), mesh)
        parts, first = [], 0
        inputs = whole_batches((seeds.astype(np.uint32), cond), batch)
        for images, finite in one_ahead(lambda part: draw(weights, *part), inputs):
            finite = np.asarray(finite)[: len(seeds) - first]
            if not finite.all():
                seed = seeds[first + int(finite.argmin())]
                raise SamplingError(
                    f"the image of seed {seed} is not finite: the parameters are not, or"
                    f" config.sample.guidance={options.guidance} is too large"
                )
            parts.append(_decoded(codec, images) if codec else np.asarray(images))
            first += batch
        return np.concatenate(parts)[: len(seeds)]

    return draw_all


def _times(experiment: Experiment, options: ConfigDict) -> np.ndarray:
    """config.sample.grid of config.sample.steps."""
    grid, grid_options = config_lib.component(ConfigDict({"sample": options}), "sample.grid")
    with named("config.sample."):
        return grid(experiment.process.schedule, options.steps, **grid_options)


def _sampler(experiment: Experiment, options: ConfigDict) -> Callable[..., jax.Array]:
    """(weights, cond, times, x, keys) -> x, with all of config.sample but its grid."""
    sampler, given = config_lib.component(ConfigDict({"sample": options}), "sample.sampler")
    process = experiment.process
    needs_variance = "variance" in inspect.signature(sampler).parameters
    denoise_of = guided(experiment, options, apart=needs_variance)
    if needs_variance and not process.learned_variance:
        raise ConfigError(
            f"config.sample.sampler.name: {options.sampler.name} needs a model that has learned its"
            " variance: config.diffusion.learned_variance; ancestral does without"
        )
    if options.threshold != "none" and experiment.config.latent.factor > 1:
        raise ConfigError("config.sample.threshold: latents have no range to be kept in")
    with named("config.sample."):
        threshold(lambda x_t, t: x_t, options.threshold, options.threshold_quantile)  # or raises

    def sample(weights, cond, times, x, keys):
        denoise = threshold(
            denoise_of(weights, cond), options.threshold, options.threshold_quantile
        )
        extra = {}
        if needs_variance:
            extra["variance"] = process.variance(experiment.network(weights[0], cond))
        return sampler(denoise, process.schedule, times, x, keys, **given, **extra)

    return sample


def _chosen(path: jax.Array, frames: int, experiment: Experiment, times: np.ndarray) -> jax.Array:
    """x_t [T, B, H, W, C] at some of its times as images [B, frames, H, W, C] of one contrast."""
    which = np.linspace(0, len(path) - 1, frames).round().astype(int)
    at = jnp.asarray(np.append(times, 0.0)[which], path.dtype)
    alpha, sigma = experiment.process.schedule.alpha_sigma(at)
    scale = jnp.where(which == len(path) - 1, 1, jax.lax.rsqrt(alpha**2 + sigma**2))
    return (path[which] * scale[:, None, None, None, None]).swapaxes(0, 1)


def _codec(config: ConfigDict) -> codec_lib.Codec:
    """The autoencoder that makes pictures of what a model of latents draws."""
    if not config.autoencoder:
        raise ConfigError(
            "config.latent.autoencoder: the model draws latents, and pictures of them need the file"
            " of their autoencoder, diffusers' AutoencoderKL; the latents themselves are written by"
            " --mode=sample --latents"
        )
    return codec_lib.load(config.autoencoder, config.factor)


def _decoded(codec: codec_lib.Codec, z: jax.Array) -> np.ndarray:
    """Pictures of latents that every process has; each decodes its share."""
    mine = pipeline.share(0, len(z), jax.process_index(), jax.process_count())
    return gather.gathered(np.asarray(codec.decode(np.asarray(z)[mine])), len(z))


def guided(
    experiment: Experiment, options: ConfigDict, *, apart: bool = False
) -> Callable[[Any, Any], Denoise]:
    """(weights, cond) -> the model's denoiser, guided as config.sample says; see `make_sample_fn`.

    apart: ask the network with and without its condition in two calls.
    """
    guide = experiment.guide
    how = dict(channels=options.guidance_channels, rescale=options.guidance_rescale)
    low, high = options.guidance_low, options.guidance_high
    with named("config.sample.guidance_"):
        guidance.guide(lambda x_t, t: x_t, lambda x_t, t: x_t, options.guidance, **how)  # or raises

    def denoise_of(weights, cond):
        params, others = weights
        own = functools.partial(experiment.denoiser, params)
        null = not_told(cond)
        other = guide.denoiser(others, cond) if guide else own(null)
        both = None if guide or apart else guidance.doubled(own, cond, null)
        return guidance.guide(own(cond), other, options.guidance, low, high, **how, both=both)

    return denoise_of


def start(
    schedule: Schedule, seeds: jax.Array, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """(x [N, *shape] in pure noise, keys [N] for what comes) of seeds [N], each its own."""
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(seeds)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys[:, 0])
    _, sigma = schedule.alpha_sigma(jnp.ones(()))
    return sigma * noise, keys[:, 1]


def batch_size(most: int, count: int, mesh: jax.sharding.Mesh) -> int:
    """For `count` images, about `most` at once: equal batches, each a multiple of the devices."""
    calls = -(-count // most)
    return -(-count // (calls * mesh.size)) * mesh.size


def whole_batches(inputs: Any, batch: int) -> Iterator[Any]:
    """Arrays [N, ...] in parts of `batch`, the last one filled up with zeros."""
    count = len(jax.tree.leaves(inputs)[0])
    padding = -count % batch
    inputs = jax.tree.map(lambda a: np.pad(a, [(0, padding)] + [(0, 0)] * (a.ndim - 1)), inputs)
    for first in range(0, count, batch):
        yield jax.tree.map(lambda a, i=first: a[i : i + batch], inputs)


def one_ahead(run: Callable[[Any], Any], inputs: Iterable[Any]) -> Iterator[Any]:
    """What `run` makes of each input, the next one begun before one is given out.

    JAX does not wait for what it starts: so devices work while the host takes what they made. Where
    host and device are the same two CPU cores, drawing and writing PNG files gained 7 % by it.
    """
    begun = []
    for given in inputs:
        begun.append(run(given))
        if len(begun) > 1:
            yield begun.pop(0)
    yield from begun


def picture(images: np.ndarray, classes: int | None) -> np.ndarray:
    """A grid of images; with few classes drawn in turn, each class has its column."""
    columns = classes if classes and classes <= 16 else int(np.ceil(np.sqrt(len(images))))
    return image_lib.grid(images, columns)


def beside(images: np.ndarray, hint: np.ndarray, data: Dataset) -> np.ndarray:
    """A grid of threes: degraded, restored, true, of the held-out examples in turn."""
    count = len(data.heldout)
    truth = np.stack([data.heldout.example(i % count)["image"] for i in range(len(images))])
    threes = np.concatenate([image_lib.to_uint8(hint), images, truth], 2)  # [N, H, 3W, C]
    return image_lib.grid(threes, max(1, round(np.sqrt(len(images) / 3))))
