"""Builds the objects that a config describes: dataset, model, diffusion process, denoiser."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vitdiff_jax.data import marks
from vitdiff_jax.data.pipeline import Dataset
from vitdiff_jax.data.records import NotPrepared
from vitdiff_jax.diffusion.average_velocity import AverageVelocity
from vitdiff_jax.diffusion.process import Denoise, Process
from vitdiff_jax.experiment import codec, degradation, rules
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment import ema as ema_lib
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.experiment.degradation import Degradation, Degraded
from vitdiff_jax.models import attention as attention_lib
from vitdiff_jax.models.conditions import Cond, null_batch, sizes_of
from vitdiff_jax.runtime import flops

LATENT_CHANNELS = 4
"""Latent channels of the published autoencoders (Stable Diffusion's)."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that a config and an image shape determine, without the data itself.

    average: how it learns average velocities, if it does.
    guide: the experiment of the model named by config.sample.guide_with, once loaded.
    """

    config: ConfigDict
    model: Any
    process: Process
    time_distribution: Callable[..., jax.Array]
    shape: tuple[int, int, int]
    conditions: Mapping[str, Any]
    average: AverageVelocity | None = None
    guide: "Experiment | None" = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape in pixel space: `shape`, or for a latent model that of the decoded images."""
        height, width, channels = self.shape
        factor = self.config.latent.factor
        return (height, width, channels) if factor == 1 else (height * factor, width * factor, 3)

    def denoiser(self, params: Any, cond: Cond, to: jax.Array | None = None) -> Denoise:
        """The denoiser with these parameters and conditions; to: see `Process.denoiser`."""
        return self.process.denoiser(self.network(params, cond), to)

    def network(self, params: Any, cond: Cond) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """The network of (scaled x_t, time feature), with these parameters and conditions."""
        return lambda x, time: cast(jax.Array, self.model.apply({"params": params}, x, time, cond))

    def param_shapes(self) -> Any:
        """Shapes and dtypes of the parameters, without computing them."""
        init = self.model.init
        shapes = jax.eval_shape(lambda: init(jax.random.key(0), *self._one()))
        return cast(Any, shapes)["params"]

    def forward_flops(self) -> float:
        """FLOPs of the network's matrix products for one forward pass on one image."""
        model = self.model
        if hasattr(model, "attention"):  # a Pallas kernel is opaque to the counter
            model = model.clone(attention="xla")
        return flops.count(model.apply, {"params": self.param_shapes()}, *self._one())

    def _one(self):
        """Network arguments for a batch of one."""
        cond = null_batch(self.model.conditions, 1, *self.shape[:2])
        return jnp.zeros((1, *self.shape)), jnp.zeros(1), cond


def build(
    config: ConfigDict, shape: tuple[int, int, int], conditions: Mapping[str, Any]
) -> Experiment:
    """Build everything except the data. Invalid values raise a ConfigError that names the key.

    shape, conditions: of the dataset, see `data.pipeline.Dataset`.
    """
    rules.check(config)
    rules.check_emas(config)
    make, options = config_lib.component(config, "diffusion.schedule")
    with config_errors("config.diffusion.schedule."):
        schedule = make(**options)
    time_distribution, options = config_lib.component(config, "diffusion.times")
    time_distribution = functools.partial(time_distribution, **options)
    diffusion = config.diffusion
    with config_errors("config.diffusion."):
        process = Process(
            schedule,
            prediction=diffusion.prediction,
            loss_space=diffusion.loss_space,
            min_snr=diffusion.min_snr,
            floor=diffusion.floor,
            learned_variance=diffusion.learned_variance,
        )
    make, options = config_lib.component(config, "model")
    model = make(sizes_of(conditions), **options)
    with config_errors("config.model."):
        model.check(shape)
    if diffusion.learned_variance and not getattr(model, "learned_sigma", False):
        raise ConfigError(
            "config.diffusion.learned_variance: needs a network that predicts the variance, with"
            f" config.model.learned_sigma=True; this {config.model.name} does not"
        )
    average = _average_velocity(config, model, process)
    return Experiment(config, model, process, time_distribution, shape, conditions, average)


def _average_velocity(config: ConfigDict, model: Any, process: Process) -> AverageVelocity | None:
    """config.diffusion.average_velocity; ConfigError where it or the network does not fit."""
    with config_errors("config.diffusion.average_velocity."):
        average = AverageVelocity(**config.diffusion.average_velocity)
    interval = getattr(model, "interval", False)
    if not average.share:
        if interval:
            raise ConfigError(
                "config.model.interval: without config.diffusion.average_velocity.share, the"
                " network would not learn what a length of an interval means"
            )
        return None
    with config_errors("config.diffusion."):
        average.check(process)
    if not interval:
        raise ConfigError(
            "config.diffusion.average_velocity.share: needs a network that takes the length of an"
            " interval, vit or dit with config.model.interval=True"
        )
    if average.guidance != 1 and not config.diffusion.label_dropout:
        raise ConfigError(
            "config.diffusion.average_velocity.guidance: needs a null condition, but"
            " config.diffusion.label_dropout is 0, so none is learned"
        )
    if model.attention in attention_lib.KERNELS:
        raise ConfigError(
            f"config.model.attention: {model.attention} has no forward-mode derivative, which"
            " config.diffusion.average_velocity needs; auto uses XLA's attention there"
        )
    return average


def clean_dataset(config: ConfigDict) -> Dataset:
    """The config's dataset in pixel space, without config.degradation."""
    make, options = config_lib.component(config, "data")
    with config_errors("config.data."):
        found = make(**options)
    if found.mark:
        return found
    mark = marks.digest(map(marks.of_source, (found.train, found.heldout)))
    return dataclasses.replace(found, mark=mark)


def dataset(config: ConfigDict) -> Dataset:
    """The training data: the config's dataset, or the latents of its images.

    With config.degradation the degraded image is a condition, the "hint". A held-out example has a
    fixed hint, from a separate set of operators; hints of training examples are sampled anew in
    each step, see `degradation_of`.
    """
    found = clean_dataset(config)
    if config.latent.factor > 1:
        if config.degradation.operators:
            raise ConfigError(
                "config.degradation.operators: needs pixel space: config.latent.factor=1"
            )
        with config_errors("config.latent."):
            return codec.latents_of(found, config)
    degradation = degradation_of(config, found.shape, "heldout")
    if degradation is None:
        return found
    if "hint" in found.conditions:
        raise ConfigError("config.degradation.operators: the dataset already provides a hint")
    return dataclasses.replace(
        found,
        heldout=Degraded(found.heldout, degradation, config.seed),
        conditions={**found.conditions, "hint": found.shape[2]},
    )


def outline(config: ConfigDict) -> tuple[tuple[int, int, int], Mapping[str, Any]]:
    """The shape and conditions of `dataset`, even if the data has not been prepared yet.

    In that case classes and attributes are numbered instead of named.
    """
    try:
        found = clean_dataset(config)
        shape, conditions = found.shape, found.conditions
    except NotPrepared as error:
        if error.outline is None:
            raise
        shape, conditions = error.outline
    factor = config.latent.factor
    if factor > 1:
        shape = (shape[0] // factor, shape[1] // factor, LATENT_CHANNELS)
    if config.degradation.operators:
        conditions = {**conditions, "hint": shape[2]}
    return shape, conditions


def pixel_dataset(config: ConfigDict) -> Dataset:
    """The dataset that samples are compared with: `dataset`, in pixel space for a latent model."""
    return clean_dataset(config) if config.latent.factor > 1 else dataset(config)


def patch_of(config: ConfigDict) -> int | None:
    """Side of the network's patches in pixels of an image, not of a latent; None: no patches."""
    patch = config.model.get("patch")
    return patch * config.latent.factor if isinstance(patch, int) and patch > 0 else None


def degradation_of(
    config: ConfigDict, shape: tuple[int, int, int], split: str
) -> Degradation | None:
    """config.degradation for images of this shape in split "train" or "heldout"; None if unset."""
    if not config.degradation.operators:
        return None
    seed = (config.seed, ("train", "heldout").index(split))
    with config_errors("config.degradation."):
        return degradation.make(
            config.degradation.operators, shape, seed=seed, noise=config.degradation.noise,
            bank=config.degradation.bank,
        )  # fmt: skip


def tracked_emas(config: ConfigDict) -> list[str]:
    """Names of the EMAs that training maintains, see `experiment.ema`."""
    decays, widths = config.train.ema, config.train.ema_widths
    return [*map(ema_lib.decay_name, decays), *map(ema_lib.width_name, widths)]


def sampled_ema(config: ConfigDict) -> str:
    """Name of the EMA that is sampled from; one of a given width may be made post hoc."""
    if config.sample.ema_width is not None:
        return ema_lib.width_name(config.sample.ema_width)
    decay = config.train.ema[0] if config.sample.ema is None else config.sample.ema
    return ema_lib.decay_name(decay)


@contextlib.contextmanager
def config_errors(prefix: str) -> Iterator[None]:
    """Turn a ValueError("option: what is wrong") into a ConfigError with the full key."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from error
