"""`--mode=evaluate`: metrics of a model's samples, over a sweep of sampling settings, or of files.

FID and other metrics for each row of the sweep (guidance scale and interval, EMA, sampler, steps),
next to the score of real images: of training images if the reference is the held-out split, else of
held-out images.
"""

import dataclasses
import functools
import importlib
import itertools
import pathlib
import time
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.data import image_files
from vitdiff_jax.data.pipeline import DataError
from vitdiff_jax.evaluation.metric import Measure, Measured
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import model as model_lib
from vitdiff_jax.inference.evaluator import Evaluator, measure, of_pictures, sampled, versions
from vitdiff_jax.interop.images import NpzWriter, check_npz
from vitdiff_jax.reporting import plots
from vitdiff_jax.runtime import logs, parallel, paths, tables


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
        """Arguments of `inference.model.load`."""
        return {"ema": self.ema, "ema_width": self.ema_width}

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


def _trained_row(workdir: epath.Path) -> Row | None:
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
    if sweep.ema and sweep.ema_width:
        raise ConfigError(
            "config.evaluate.sweep.ema_width: sweep either ema or ema_width, they are alternatives"
        )
    for name in sweep.sampler:
        key = "config.evaluate.sweep.sampler"
        config_lib.find(config_lib.COMPONENTS["sample.sampler"], key, name)


def main(
    config: ConfigDict | None,
    workdir: epath.Path,
    *,
    samples: pathlib.Path | None = None,
    truth: pathlib.Path | None = None,
    npz: bool = False,
) -> None:
    """Print a table, write evaluation.json with all settings and, for a sweep, evaluation.png.

    --samples: a folder, zip or .npz file of images to evaluate instead of a model. --truth: ground
    truth in the same order, for psnr, ssim and lpips. --npz: also write the samples, in the format
    of ADM's evaluator.
    """
    start = time.monotonic()
    if truth and not samples:
        raise ConfigError("--truth: needs --samples")
    if npz and samples:
        raise ConfigError("--npz: applies to a model's samples, not to --samples")
    if npz:
        check_npz(workdir)
    if samples is None:
        report = _of_model(config, workdir, npz)
    elif config is None:
        raise ConfigError("--config: required with --samples, for its data and evaluate sections")
    else:
        report = _of_pictures(config, workdir, samples, truth)
    report["seconds"] = round(time.monotonic() - start, 1)
    report["versions"] = versions()
    path = workdir / "evaluation.json"
    if jax.process_index() == 0:
        tables.write(path, report)
        if len(report["rows"]) > 1:
            plots.sweep(path.with_suffix(".png"), report)
    logs.say(f"results in {path}")


def _of_model(config: ConfigDict | None, workdir: epath.Path, npz: bool) -> dict[str, Any]:
    """The report on samples of a trained model, one row per combination of settings."""
    stored = config_lib.read(workdir / "config.json") if config is None else config
    sweep, base = rows(stored), _trained_row(workdir)
    model = model_lib.load(workdir, config, **sweep[0].which_ema())
    known = model.experiment
    evaluator = Evaluator(known.config, workdir, model.mesh)
    dataset = evaluator.setting.dataset
    model_lib.check_data({"shape": known.image_shape, "conditions": known.conditions}, dataset)
    found, loaded = [], sweep[0].which_ema()
    for row in sweep:
        if row.which_ema() != loaded:
            loaded = row.which_ema()
            model = model_lib.load(workdir, config, **loaded)
        began = time.monotonic()
        measured = _measure_row(model, evaluator, row, row.differences(base), npz)
        numbers = evaluator.results(measured)
        seconds = round(time.monotonic() - began, 1)
        calls = {"network_calls": _calls(known.config, row)}
        found.append(dataclasses.asdict(row) | calls | {"results": numbers, "seconds": seconds})
    for line in evaluator.warnings(measured, known.image_shape, dataset.crop, False):
        logs.say(f"warning: {line}")
    report = _report(evaluator, found, measured.count)
    if jax.process_index() == 0:
        for row in sweep:
            _partial(evaluator, row.differences(base)).unlink(missing_ok=True)
    return report | {"step": model.step, "sample": known.config.sample.to_dict()}


def _calls(config: ConfigDict, row: Row) -> int:
    """Number of network evaluations per sample without guidance, which may double them."""
    key = "sample.sampler"
    sampler = config_lib.find(config_lib.COMPONENTS[key], f"config.{key}.name", row.sampler)
    given = config.sample.sampler.to_dict() if row.sampler == config.sample.sampler.name else {}
    options = {name: value for name, value in given.items() if name != "name"}
    return importlib.import_module(sampler.__module__).nfe(row.steps, **options)


def _measure_row(
    model: model_lib.TrainedModel, evaluator: Evaluator, row: Row, names: dict[str, str], npz: bool
) -> Measured:
    """Sample and measure a row; npz: also write the samples into evaluation/.

    names: `Row.differences`.
    """
    config, dataset = model.experiment.config, evaluator.setting.dataset
    count, keep = config.evaluate.images, _partial(evaluator, names)
    stem = "-".join([f"samples-step{model.step}", *names.values()])
    target, shape = evaluator.home / f"{stem}.npz", (count, *model.experiment.image_shape)
    sample = functools.partial(model.sample_cond, **row.options())
    batches = sampled(sample, config, dataset, count)
    writes = npz and jax.process_index() == 0
    if writes and not paths.partial_path(target).exists() and not target.exists():
        keep.unlink(missing_ok=True)  # measured earlier, but not written

    def written(first):
        target.parent.mkdir(parents=True, exist_ok=True)
        writer = NpzWriter(target, shape)
        for batch in batches(first):
            writer.write(first, batch.images)
            first += len(batch.images)
            yield batch

    logs.say(f"sampling {count:,} images" + (f": {', '.join(names)}" if names else ""))
    about = {
        "step": model.step, "row": dataclasses.asdict(row), "seed": config.evaluate.seed,
        "labels": config.evaluate.labels, "sample": config.sample.to_dict(), "npz": npz,
        "mark": dataset.mark,
    }  # fmt: skip
    measured = measure(evaluator.parts, count, written if writes else batches, keep, about)
    if writes and paths.partial_path(target).exists():
        NpzWriter(target, shape).close(count)
    return measured


def _partial(evaluator: Evaluator, names: dict[str, str]) -> epath.Path:
    """The file of a row's statistics so far."""
    return evaluator.home / f"{'-'.join(['row', *names.values()])}.npz"


def _of_pictures(
    config: ConfigDict, workdir: epath.Path, samples: pathlib.Path, truth: pathlib.Path | None
) -> dict[str, Any]:
    """The report on images from files."""
    images = image_files.open_images(samples, "--samples")
    true = image_files.open_images(truth, "--truth") if truth else None
    if len(images) < 2:
        raise DataError(f"--samples: {images.origin} are too few, at least 2 are required")
    if true and (len(true), true.shape) != (len(images), images.shape):
        raise DataError(
            f"--truth: {true.origin} of {true.shape}, but the samples are {images.origin} of"
            f" {images.shape}"
        )
    evaluator = Evaluator(config, workdir, parallel.make_mesh())
    logs.say(f"measuring {images.origin}")
    measured = measure(evaluator.parts, len(images), of_pictures(images, true), None, {})
    found = [{"samples": str(samples), "results": evaluator.results(measured)}]
    for line in evaluator.warnings(measured, images.shape, None, images.lossy):
        logs.say(f"warning: {line}")
    return _report(evaluator, found, len(images)) | {"truth": str(truth) if truth else None}


def _report(evaluator: Evaluator, found: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """Print the table and return it with all settings."""
    real = evaluator.real_scores(count)
    best = _best(evaluator.metrics[0], found)
    for line in tables.table(found, real, best):
        logs.say(line)
    return {
        "rows": found,
        "best": best,
        "images": count,
        "real_images": {"of": real[0], "results": real[1]} if real else None,
        "reference": evaluator.file.about | {"file": evaluator.split}
        if evaluator.file
        else evaluator.split,
        "data": evaluator.config.data.to_dict(),
        "crop": evaluator.crop(),
        "evaluate": evaluator.config.evaluate.to_dict(),
    }


def _best(metric: Measure, found: list[dict[str, Any]]) -> int:
    """Index of the row with the best value of the first metric."""
    sign = -1 if metric.higher_is_better else 1
    return int(np.argmin([sign * row["results"][metric.name]["value"] for row in found]))
