"""A checked config made into objects: data set, model, process, and the network as a `Denoise`."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vitdiff_jax.data.pipeline import Dataset
from vitdiff_jax.data.records import NotPrepared
from vitdiff_jax.diffusion.process import Denoise, Process
from vitdiff_jax.experiment import codec, degradation
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment import ema as ema_lib
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.experiment.degradation import Degradation, Degraded
from vitdiff_jax.models.conditions import Cond, blank, sizes_of
from vitdiff_jax.runtime import flops

LATENT_CHANNELS = 4
"""Of the autoencoders that published latents are made with."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config and the shape of its images determine, without any data.

    guide: that of the model of config.sample.guide_with, once it was looked up.
    """

    config: ConfigDict
    model: Any
    process: Process
    time_distribution: Callable[..., jax.Array]
    shape: tuple[int, int, int]
    conditions: Mapping[str, Any]
    guide: "Experiment | None" = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of the pictures: `shape`, or of what its latents are decoded to."""
        height, width, channels = self.shape
        factor = self.config.latent.factor
        return (height, width, channels) if factor == 1 else (height * factor, width * factor, 3)

    def denoiser(self, params: Any, cond: Cond) -> Denoise:
        """The network with these parameters and conditions as an estimate of x."""
        return self.process.denoiser(self.network(params, cond))

    def network(self, params: Any, cond: Cond) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """The network, with these parameters and conditions, of (scaled x_t, time feature)."""
        return lambda x, time: cast(jax.Array, self.model.apply({"params": params}, x, time, cond))

    def param_shapes(self) -> Any:
        """The parameters' shapes and types, not computed."""
        init = self.model.init
        shapes = jax.eval_shape(lambda: init(jax.random.key(0), *self._one()))
        return cast(Any, shapes)["params"]

    def forward_flops(self) -> float:
        """Floating-point operations of the network's matrix products on one image."""
        model = self.model
        if hasattr(model, "attention"):  # a kernel's operations are not to be seen from outside
            model = model.clone(attention="xla")
        return flops.of(model.apply, {"params": self.param_shapes()}, *self._one())

    def _one(self):
        """The network's arguments for one image."""
        cond = blank(self.model.conditions, 1, *self.shape[:2])
        return jnp.zeros((1, *self.shape)), jnp.zeros(1), cond


def build(
    config: ConfigDict, shape: tuple[int, int, int], conditions: Mapping[str, Any]
) -> Experiment:
    """Build everything but data. Impossible values are a ConfigError that names the key.

    shape, conditions: of the data set, see `data.pipeline.Dataset`.
    """
    make, options = config_lib.component(config, "diffusion.schedule")
    with named("config.diffusion.schedule."):
        schedule = make(**options)
    time_distribution, options = config_lib.component(config, "diffusion.times")
    time_distribution = functools.partial(time_distribution, **options)
    diffusion = config.diffusion
    with named("config.diffusion."):
        process = Process(
            schedule,
            prediction=diffusion.prediction,
            loss_space=diffusion.loss_space,
            min_snr=diffusion.min_snr,
            floor=diffusion.floor,
            learned_variance=diffusion.learned_variance,
        )
        if not 0 <= diffusion.label_dropout <= 1:
            raise ValueError(f"label_dropout: {diffusion.label_dropout} is not in [0, 1]")
    make, options = config_lib.component(config, "model")
    model = make(sizes_of(conditions), **options)
    with named("config.model."):
        model.check(shape)
    if diffusion.learned_variance and not getattr(model, "learned_sigma", False):
        raise ConfigError(
            "config.diffusion.learned_variance: the network must put it out:"
            f" config.model.learned_sigma=True, which {config.model.name} may not have"
        )
    _check_numbers(config)
    return Experiment(config, model, process, time_distribution, shape, conditions)


def clean_dataset(config: ConfigDict) -> Dataset:
    """The config's images as they are, whatever config.degradation and config.latent say."""
    make, options = config_lib.component(config, "data")
    with named("config.data."):
        return make(**options)


def dataset(config: ConfigDict) -> Dataset:
    """What the network learns from: the config's data set, or the latents of its images.

    With config.degradation it has a hint as a condition. Held-out examples have theirs, by their
    own operators, always the same; those of training examples are drawn anew in each step, see
    `degradation_of`.
    """
    found = clean_dataset(config)
    if config.latent.factor > 1:
        if config.degradation.operators:
            raise ConfigError("config.degradation.operators: needs pixels, so latent.factor=1")
        with named("config.latent."):
            return codec.latents_of(found, config)
    degradation = degradation_of(config, found.shape, "heldout")
    if degradation is None:
        return found
    if "hint" in found.conditions:
        raise ConfigError("config.degradation.operators: the data have a hint already")
    return dataclasses.replace(
        found,
        heldout=Degraded(found.heldout, degradation, config.seed),
        conditions={**found.conditions, "hint": found.shape[2]},
    )


def outline(config: ConfigDict) -> tuple[tuple[int, int, int], Mapping[str, Any]]:
    """The shape and conditions of `dataset`, also where the data are not there yet.

    Then the names of classes and attributes are numbers.
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


def pictures(config: ConfigDict) -> Dataset:
    """What samples are compared with: `dataset`, but of latents the images themselves."""
    return clean_dataset(config) if config.latent.factor > 1 else dataset(config)


def degradation_of(
    config: ConfigDict, shape: tuple[int, int, int], split: str
) -> Degradation | None:
    """config.degradation for images of this shape, of "train" or "heldout"; None: there is none."""
    if not config.degradation.operators:
        return None
    seed = (config.seed % 2**32, ("train", "heldout").index(split))
    with named("config.degradation."):
        return degradation.make(
            config.degradation.operators, shape, seed=seed, noise=config.degradation.noise,
            bank=config.degradation.bank,
        )  # fmt: skip


def tracked_emas(config: ConfigDict) -> list[str]:
    """The names of the averages that training keeps up, see `averages`."""
    decays, widths = config.train.ema, config.train.ema_widths
    return [*map(ema_lib.decay_name, decays), *map(ema_lib.width_name, widths)]


def sampled_ema(config: ConfigDict) -> str:
    """The name of the average that samples are drawn with; a width may have to be blended."""
    if config.sample.ema_width is not None:
        return ema_lib.width_name(config.sample.ema_width)
    decay = config.train.ema[0] if config.sample.ema is None else config.sample.ema
    return ema_lib.decay_name(decay)


def _check_numbers(config: Any) -> None:
    """Refuse counts below their least and averages that do not exist."""
    least = {
        "latent.factor": 1, "degradation.noise": 0, "degradation.bank": 1,
        "train.steps": 1, "train.batch": 1, "train.accumulate": 1, "train.max_bad_steps": 1,
        "optimizer.warmup": 0, "checkpoint.every": 1, "checkpoint.keep": 1,
        "checkpoint.keep_every": 0, "log.every": 1, "log.sample_every": 0, "log.heldout_every": 0,
        "log.heldout_images": 1, "log.heldout_levels": 1, "log.images": 1, "log.nearest_every": 0,
        "log.evaluate_every": 0, "log.evaluate_images": 2, "sample.steps": 1, "sample.batch": 1,
        "evaluate.images": 2, "restore.steps": 1, "restore.batch": 1, "restore.tiles": 0,
        "restore.images": 1, "parallel.data_threads": 1,
    }  # fmt: skip
    for key, bound in least.items():
        section, name = key.split(".")
        if (value := config[section][name]) < bound:
            raise ConfigError(f"config.{key}: {value} is less than {bound}")
    _check_emas(config)
    if config.evaluate.labels not in ("balanced", "prior"):
        raise ConfigError(
            f"config.evaluate.labels: {config.evaluate.labels!r} is none of balanced, prior"
        )
    if config.optimizer.decay not in ("constant", "cosine"):
        raise ConfigError(
            f"config.optimizer.decay: {config.optimizer.decay!r} is none of constant, cosine"
        )
    if config.parallel.compiler not in ("jit", "pmap"):
        raise ConfigError(
            f"config.parallel.compiler: {config.parallel.compiler!r} is none of jit, pmap"
        )
    if config.parallel.compiler == "pmap" and (config.parallel.fsdp != 1 or config.parallel.zero1):
        key = "zero1" if config.parallel.zero1 else "fsdp"
        raise ConfigError(
            f"config.parallel.{key}: pmap keeps the whole state on every device; leave it out"
        )
    if config.parallel.zero1 and config.parallel.fsdp != 1:
        raise ConfigError("config.parallel.zero1: fsdp cuts the state already; use one of them")
    _check_gradients(config)


def _check_gradients(config: Any) -> None:
    """Refuse gradients of a type that the network does not compute in."""
    dtype = config.train.gradient_dtype
    if dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"config.train.gradient_dtype: {dtype!r} is none of float32, bfloat16")
    if dtype == "bfloat16" and config.model.get("dtype") != "bfloat16":
        raise ConfigError(
            "config.train.gradient_dtype: bfloat16 is for networks that compute in it:"
            " config.model.dtype=bfloat16"
        )


def _check_emas(config: Any) -> None:
    """Refuse averages that cannot be kept up, or not be had from those that are."""
    decays, widths, sample = config.train.ema, config.train.ema_widths, config.sample
    if not decays or not all(isinstance(d, (int, float)) and 0 <= d < 1 for d in decays):
        raise ConfigError(f"config.train.ema: {decays} must be decays in [0, 1)")
    for key, values in (
        ("train.ema_widths", widths),
        ("sample.ema_width", () if sample.ema_width is None else (sample.ema_width,)),
        ("evaluate.sweep.ema_width", config.evaluate.sweep.ema_width),
    ):
        for value in values:
            if not isinstance(value, (int, float)) or not 0 < value <= ema_lib.WIDEST:
                raise ConfigError(
                    f"config.{key}: {value!r} is no relative width in (0, {ema_lib.WIDEST:.3f}]"
                )
        if values and not widths:
            raise ConfigError(
                f"config.{key}: needs averages to be made from; train with"
                " config.train.ema_widths=(0.05,0.10) and config.checkpoint.keep_every"
            )
    if sample.ema is not None and float(sample.ema) not in map(float, decays):
        raise ConfigError(f"config.sample.ema: {sample.ema} is none of config.train.ema {decays}")


@contextlib.contextmanager
def named(prefix: str) -> Iterator[None]:
    """Turn a part's ValueError("option: what is wrong") into a ConfigError with the whole key."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from error
