"""The rows of an evaluation: combinations of sampling settings, by config.evaluate.sweep."""

import dataclasses
import itertools
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment import rules
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import provenance
from vitdiff_jax.runtime import tables


@dataclasses.dataclass(frozen=True)
class Row:
    """Sampling settings: a row of the sweep."""

    guidance: float
    guidance_low: float
    guidance_high: float
    ema: float | None
    ema_width: float | None  # instead of ema
    sampler: str
    steps: int

    def options(self) -> dict[str, Any]:
        """Options of `TrainedModel.sample_cond`."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in self.which_ema()}

    def which_ema(self) -> dict[str, float | None]:
        """Arguments of `inference.loading.load`."""
        return {"ema": self.ema, "ema_width": self.ema_width}

    def of_sampling(self, config: ConfigDict) -> dict[str, Any]:
        """`provenance.of_sampling` of this row."""
        found, own = provenance.of_sampling(config), dataclasses.asdict(self)
        other = found["sample"]["sampler"]["name"] != self.sampler  # whose options are not used
        sample = {
            key: value for key, value in found["sample"].items()
            if key not in own or (key == "sampler" and not other)
        }  # fmt: skip
        return found | {"sample": sample, "ema": None, "row": own}

    def _settings(self) -> dict[str, str]:
        """{setting in words: short, for file names}."""
        low, high, scale = map(_short, (self.guidance_low, self.guidance_high, self.guidance))
        ema = f"EMA {self.ema}" if self.ema_width is None else f"EMA width {self.ema_width}"
        return {
            f"guidance {scale}": f"guidance{scale}",
            f"guidance interval [{low}, {high}]": f"interval{low}-{high}",
            ema: ema.lower().replace(" ", ""),
            self.sampler: self.sampler,
            f"{self.steps} steps": f"{self.steps}steps",
        }

    def differences(self, base: "Row | None") -> dict[str, str]:
        """{in words: short} of the settings that differ from `base`; None: of all."""
        known = base._settings() if base else {}
        return {words: short for words, short in self._settings().items() if words not in known}


def _short(value: float) -> str:
    return str(value).removesuffix(".0")


def base_row(config: ConfigDict) -> Row:
    """The settings of config.sample."""
    given, width = config.sample, config.sample.ema_width
    ema = float(experiment_lib.sampled_ema(config)) if width is None else None
    return Row(
        float(given.guidance), float(given.guidance_low), float(given.guidance_high), ema, width,
        given.sampler.name, given.steps,
    )  # fmt: skip


def trained_row(workdir: epath.Path) -> Row | None:
    """The settings in the workdir's config.json, as plain JSON: no code is run for a name."""
    try:
        return base_row(ConfigDict(tables.read(workdir / "config.json")))
    except (ValueError, LookupError, AttributeError, TypeError):  # an older version wrote it
        return None


def rows(config: ConfigDict) -> list[Row]:
    """All combinations of config.evaluate.sweep; empty entries take the value of config.sample."""
    base, sweep = base_row(config), config.evaluate.sweep
    _check_sweep(config)
    emas = [(float(d), None) for d in sweep.ema] + [(None, float(w)) for w in sweep.ema_width]
    product = itertools.product(
        emas or [(base.ema, base.ema_width)], sweep.sampler or (base.sampler,),
        sweep.steps or (base.steps,), sweep.interval or ((base.guidance_low, base.guidance_high),),
        sweep.guidance or (base.guidance,),
    )  # fmt: skip
    return [
        Row(float(guidance), float(low), float(high), *ema, sampler, steps)
        for ema, sampler, steps, (low, high), guidance in product
    ]


def _check_sweep(config: ConfigDict) -> None:
    """Reject invalid values before sampling."""
    sweep, known = config.evaluate.sweep, [float(decay) for decay in config.train.ema]

    def number(value):
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    def pair(value):
        return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(number, value))

    wanted = {
        "guidance": (number, "a number"),
        "interval": (pair, "a pair (low, high)"),
        "ema": (lambda value: number(value) and float(value) in known, f"one of train.ema {known}"),
        "steps": (lambda value: isinstance(value, int) and value >= 1, "a positive integer"),
    }
    for key, (good, what) in wanted.items():
        for value in sweep[key]:
            if not good(value):
                raise ConfigError(f"config.evaluate.sweep.{key}: {value!r} is not {what}")
    for low, high in sweep.interval:
        ends = {"guidance_low": low, "guidance_high": high}
        rules.check_interval(ends, "config.evaluate.sweep.interval: ")
    if sweep.ema and sweep.ema_width:
        raise ConfigError(
            "config.evaluate.sweep.ema_width: sweep either ema or ema_width, they are alternatives"
        )
    for name in sweep.sampler:
        key = "config.evaluate.sweep.sampler"
        config_lib.find(config_lib.COMPONENTS["sample.sampler"], key, name)
