"""The ranges of all numbers: of config keys and of flags, on the command line and from Python.

`check` applies `RANGES` and `CHOICES` to a config, `check_flags` applies `FLAGS` to the flags of
the modes. A number without a range here has one in the component that it belongs to, such as the
`check` of a network; whatever it is, it must be finite.
"""

import dataclasses
import math
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

from vitdiff_jax.experiment import ema as ema_lib


class ConfigError(ValueError):
    """An invalid config; the message is one line that names the key."""


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`. above, below: without that end. note: for the message."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    note: str = ""

    def __contains__(self, value: float) -> bool:
        high = value < self.high if self.below else value <= self.high
        return (value > self.low if self.above else value >= self.low) and high

    def refusal(self, value: float) -> str:
        """Why a number is not in the range."""
        if self.high - self.low <= 2:
            first, last = "(" if self.above else "[", ")" if self.below else "]"
            text = f"{value} is not in {first}{self.low:g}, {self.high:g}{last}"
        elif value > self.high:
            text = f"{value} is more than {self.high}"
        else:
            text = f"{value} is {'not more' if self.above else 'less'} than {self.low}"
        return f"{text}; {self.note}" if self.note else text


LARGEST, SEEDS = 2**31 - 1, 2**32
"""The largest int32; the number of seeds: image i has the seed `seed + i`, which must be one."""
ONE, TWO, COUNT, REAL = Range(1, LARGEST), Range(2, LARGEST), Range(0, LARGEST), Range()
POSITIVE, SHARE, BELOW_ONE = Range(0, above=True), Range(0, 1), Range(0, 1, below=True)
SEED, WIDTH = Range(0, SEEDS - 1), Range(0, ema_lib.WIDEST, above=True)
STD = Range(
    0, 2, note="pixels are in [-1, 1]: divide a standard deviation of 8-bit values by 127.5"
)

RANGES = {
    "seed": SEED,
    "latent.factor": ONE,
    "degradation.noise": STD, "degradation.bank": ONE,
    "diffusion.label_dropout": SHARE,
    "diffusion.average_velocity.share": SHARE, "diffusion.average_velocity.power": COUNT,
    "diffusion.average_velocity.guidance": Range(1),
    "diffusion.schedule.noise_scale": POSITIVE, "diffusion.schedule.time_scale": POSITIVE,
    "diffusion.schedule.beta_min": COUNT, "diffusion.schedule.beta_max": POSITIVE,
    "diffusion.schedule.sigma_min": POSITIVE, "diffusion.schedule.sigma_max": POSITIVE,
    "diffusion.schedule.sigma_data": POSITIVE, "diffusion.schedule.first": COUNT,
    "diffusion.times.std": POSITIVE, "diffusion.times.steps": ONE,
    "optimizer.learning_rate": POSITIVE, "optimizer.warmup": COUNT, "optimizer.b1": BELOW_ONE,
    "optimizer.b2": BELOW_ONE, "optimizer.eps": POSITIVE, "optimizer.weight_decay": COUNT,
    "optimizer.clip": COUNT,
    "train.steps": ONE, "train.batch": ONE, "train.accumulate": ONE,
    "train.frechet.decay": BELOW_ONE, "train.frechet.images": TWO,
    "train.ema": BELOW_ONE, "train.ema_widths": WIDTH, "train.max_bad_steps": ONE,
    "parallel.fsdp": ONE, "parallel.data_threads": ONE,
    "checkpoint.every": ONE, "checkpoint.keep": ONE, "checkpoint.keep_every": COUNT,
    "log.every": ONE, "log.sample_every": COUNT, "log.heldout_every": COUNT,
    "log.heldout_images": ONE, "log.heldout_levels": ONE, "log.images": ONE,
    "log.nearest_every": COUNT, "log.evaluate_every": COUNT, "log.evaluate_images": TWO,
    "sample.steps": ONE, "sample.batch": ONE, "sample.ema": BELOW_ONE,
    "sample.ema_width": WIDTH, "sample.guidance": REAL,
    "sample.guidance_low": SHARE, "sample.guidance_high": SHARE,
    "sample.guidance_channels": COUNT, "sample.guidance_rescale": SHARE,
    "sample.threshold_quantile": Range(0, 1, above=True),
    "sample.grid.shift": POSITIVE, "sample.grid.rho": POSITIVE, "sample.grid.of": ONE,
    "sample.sampler.eta": SHARE, "sample.sampler.s_churn": COUNT, "sample.sampler.s_min": COUNT,
    "sample.sampler.s_max": Range(0), "sample.sampler.s_noise": POSITIVE,
    "evaluate.images": TWO, "evaluate.seed": SEED, "evaluate.sweep.guidance": REAL,
    "evaluate.sweep.interval": SHARE, "evaluate.sweep.ema": BELOW_ONE,
    "evaluate.sweep.ema_width": WIDTH, "evaluate.sweep.steps": ONE,
    "restore.steps": ONE, "restore.batch": ONE, "restore.tiles": COUNT, "restore.images": ONE,
    "restore.overlap": Range(0, 0.9), "restore.noise_std": STD,
}  # fmt: skip
"""config key -> its range; of a list, that of each value."""
CHOICES = {
    "evaluate.labels": ("balanced", "prior"),
    "optimizer.name": ("adamw", "muon"),
    "optimizer.decay": ("constant", "cosine"),
    "parallel.compiler": ("jit", "pmap"),
    "train.gradient_dtype": ("float32", "bfloat16"),
}
INFINITE = ("sample.sampler.s_max",)
"""Keys that may be infinite."""
FLAGS = {
    "n": ONE, "seed": SEED, "strength": Range(0, 1, above=True, below=True),
    "processes": ONE, "process": COUNT, "price_per_chip_hour": COUNT,
}  # fmt: skip
"""Flag -> its range, in every mode that has the flag."""
METHODS = {
    "eta": SHARE, "eta_b": SHARE, "zeta": SHARE, "strength": POSITIVE, "scale": COUNT,
    "data_std": POSITIVE, "iterations": ONE, "power": COUNT, "draws": ONE, "jump": ONE,
    "resample": ONE, "gamma": SHARE, "ode": ONE, "langevin": ONE, "tau": COUNT,
    "step": Range(0, 1, above=True),
}  # fmt: skip
"""Option of the package's restoration methods -> its range."""


def check(config: Any) -> None:
    """Raise ConfigError for a value of a config that is out of its range, or contradicts another.

    config: complete. The options of a component of the user's own must only be finite.
    """
    for key, value in leaves(config):
        if key in CHOICES and value not in CHOICES[key]:
            raise ConfigError(f"config.{key}: {value!r} is not one of {', '.join(CHOICES[key])}")
        known = None if _is_foreign(config, key) else RANGES.get(key)
        for one in _flat(value):
            if _is_number(one):
                _check_number(f"config.{key}", one, known, key in INFINITE)
            elif known is not None and one is not None:
                raise ConfigError(f"config.{key}: {one!r} is not a number")
    check_seeds("config.evaluate.seed", config.evaluate.seed, config.evaluate.images)
    check_interval(config.sample, "config.sample.")
    _check_parallel(config)


def check_interval(sample: Mapping[str, Any], prefix: str = "") -> None:
    """Raise ConfigError for a guidance interval that holds no time. prefix: of the keys."""
    low, high = sample["guidance_low"], sample["guidance_high"]
    if low >= high:  # both ends are open
        raise ConfigError(
            f"{prefix}guidance_low: {low} is not less than guidance_high,"
            f" {high}: no time lies between them"
        )


def check_flags(given: Mapping[str, Any]) -> None:
    """Raise ConfigError for a flag, {name: value}, that is out of its range in `FLAGS`.

    None stands for a flag that is not given; with both `seed` and `n`, the last seed counts too.
    """
    for name, value in given.items():
        if _is_number(value):
            _check_number(f"--{name}", value, FLAGS.get(name))
    if given.get("seed") is not None and "n" in given:
        check_seeds("--seed", given["seed"], 1 if given["n"] is None else given["n"])


def check_method(name: str, options: Mapping[str, Any]) -> None:
    """Raise ConfigError for an option of a restoration method that is out of its range."""
    for key, value in options.items():
        if _is_number(value):
            known = None if "." in name else METHODS.get(key)
            _check_number(f"method: {name}: {key}", value, known)


def _check_number(key: str, value: float, known: Range | None, infinite: bool = False) -> None:
    if not math.isfinite(value) and not (infinite and value > 0):
        raise ConfigError(f"{key}: {value} is not a finite number")
    if known is not None and value not in known:
        raise ConfigError(f"{key}: {known.refusal(value)}")


def check_seeds(key: str, seed: int, count: int) -> None:
    """Raise ConfigError unless `count` images have seeds: image i has `seed + i`."""
    if seed + count > SEEDS:
        raise ConfigError(
            f"{key}: {seed} and the seeds of {count:,} images go beyond {SEEDS - 1}, the last seed"
        )


def _flat(value: Any) -> Iterator[Any]:
    """The values of nested lists; another value is itself."""
    if isinstance(value, (tuple, list)):
        for one in value:
            yield from _flat(one)
    else:
        yield value


def _is_foreign(config: Any, key: str) -> bool:
    """Whether a key is an option of code outside the package."""
    for part in key.split(".")[:-1]:
        config = config[part]
        if "." in str(config.get("name", "")):
            return True
    return False


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of a config or of nested dicts."""
    for key, value in tree.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check_emas(config: Any) -> None:
    """Raise ConfigError for EMAs that cannot be made from those that training maintains."""
    decays, widths, sample = config.train.ema, config.train.ema_widths, config.sample
    if not decays:
        raise ConfigError("config.train.ema: empty; name at least one decay, such as (0.9999,)")
    for key, values in (
        ("sample.ema_width", () if sample.ema_width is None else (sample.ema_width,)),
        ("evaluate.sweep.ema_width", config.evaluate.sweep.ema_width),
    ):
        if values and not widths:
            raise ConfigError(
                f"config.{key}: post-hoc EMAs need stored ones; train with"
                " config.train.ema_widths=(0.05,0.10) and config.checkpoint.keep_every"
            )
    if sample.ema is not None and float(sample.ema) not in map(float, decays):
        raise ConfigError(
            f"config.sample.ema: {sample.ema} is not one of config.train.ema {decays}"
        )


def _check_parallel(config: Any) -> None:
    """Reject shardings and dtypes that exclude each other."""
    parallel = config.parallel
    if parallel.compiler == "pmap" and (parallel.fsdp != 1 or parallel.zero1):
        key = "zero1" if parallel.zero1 else "fsdp"
        raise ConfigError(
            f"config.parallel.{key}: pmap replicates the state on every device; use compiler=jit"
        )
    if parallel.zero1 and parallel.fsdp != 1:
        raise ConfigError("config.parallel.zero1: fsdp already shards the state; use only one")
    if config.train.gradient_dtype == "bfloat16" and config.model.get("dtype") != "bfloat16":
        raise ConfigError(
            "config.train.gradient_dtype: bfloat16 needs a network that computes in it:"
            " config.model.dtype=bfloat16"
        )
