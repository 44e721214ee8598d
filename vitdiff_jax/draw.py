"""Drawing images with a model: config.sample, compiled.

Image i is drawn from the seed `seed + i` alone: the same seed gives the same image (to rounding)
in any batch, on any number of devices, and shows how one image changes over training.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vitdiff_jax import config as config_lib
from vitdiff_jax import parallel
from vitdiff_jax.data.pipeline import Dataset
from vitdiff_jax.diffusion.process import Denoise, guide
from vitdiff_jax.diffusion.schedules import Schedule
from vitdiff_jax.experiment import Experiment, named
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.models.conditions import not_told
from vitdiff_jax.prompts import Cond

Draw = Callable[[Any, np.ndarray, Cond], np.ndarray]


class SamplingError(RuntimeError):
    """Sampling that failed; the message is one line."""


def make_draw(experiment: Experiment, options: ConfigDict, mesh: jax.sharding.Mesh) -> Draw:
    """Compile config.sample into (params, seeds [N], cond) -> uint8 images [N, H, W, C].

    One call of the compiled loop draws `options.batch` images, cut over all devices.
    """
    whole = ConfigDict({"sample": options})
    sampler, sampler_options = config_lib.component(whole, "sample.sampler")
    grid, grid_options = config_lib.component(whole, "sample.grid")
    schedule = experiment.process.schedule
    with named("config.sample."):
        times = grid(schedule, options.steps, **grid_options)
    sharding = parallel.batch_sharding(mesh)
    denoise_of = guided(experiment, options)

    @functools.partial(jax.jit, out_shardings=parallel.replicated(mesh))
    def draw(params, seeds, cond):
        seeds, cond = jax.lax.with_sharding_constraint((seeds, cond), sharding)
        x, keys = start(schedule, seeds, experiment.shape)
        x = sampler(denoise_of(params, cond), schedule, times, x, keys, **sampler_options)
        return image_lib.to_uint8(x), jnp.isfinite(x).all((1, 2, 3))

    def draw_all(params, seeds, cond):
        batch = batch_size(options.batch, len(seeds), mesh)
        parts, first = [], 0
        for part in whole_batches((seeds.astype(np.uint32), cond), batch):
            images, finite = draw(params, *part)
            finite = np.asarray(finite)[: len(seeds) - first]
            if not finite.all():
                seed = seeds[first + int(finite.argmin())]
                raise SamplingError(
                    f"the image of seed {seed} is not finite: the parameters are not, or"
                    f" config.sample.guidance={options.guidance} is too large"
                )
            parts.append(np.asarray(images))
            first += batch
        return np.concatenate(parts)[: len(seeds)]

    return draw_all


def guided(experiment: Experiment, options: ConfigDict) -> Callable[[Any, Any], Denoise]:
    """(params, cond) -> the model's denoiser, guided as config.sample says."""

    def denoise_of(params, cond):
        return guide(
            experiment.denoiser(params, cond), experiment.denoiser(params, not_told(cond)),
            options.guidance, options.guidance_low, options.guidance_high,
        )  # fmt: skip

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
    """For `count` images, about `most` at once: a multiple of the devices."""
    return -(-min(most, count) // mesh.size) * mesh.size


def whole_batches(inputs: Any, batch: int) -> Iterator[Any]:
    """Arrays [N, ...] in parts of `batch`, the last one filled up with zeros."""
    count = len(jax.tree.leaves(inputs)[0])
    padding = -count % batch
    inputs = jax.tree.map(lambda a: np.pad(a, [(0, padding)] + [(0, 0)] * (a.ndim - 1)), inputs)
    for first in range(0, count, batch):
        yield jax.tree.map(lambda a, i=first: a[i : i + batch], inputs)


def picture(images: np.ndarray, classes: int | None) -> np.ndarray:
    """A grid of images; with few classes drawn in turn, each class has its column."""
    columns = classes if classes and classes <= 16 else int(np.ceil(np.sqrt(len(images))))
    return image_lib.grid(images, columns)


def beside(images: np.ndarray, hint: np.ndarray, data: Dataset) -> np.ndarray:
    """A grid of threes: damaged, restored, true, of the held-out examples in turn."""
    count = len(data.heldout)
    truth = np.stack([data.heldout.example(i % count)["image"] for i in range(len(images))])
    threes = np.concatenate([image_lib.to_uint8(hint), images, truth], 2)  # [N, H, 3W, C]
    return image_lib.grid(threes, max(1, round(np.sqrt(len(images) / 3))))
