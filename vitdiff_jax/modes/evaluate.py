"""`--mode=evaluate`: measure samples, drawn with fixed seeds or from anywhere; sweep what matters.

FID and the like for each row of the sweep (guidance, its interval, EMA, sampler, steps), beside the
real images: what they get, training ones where the reference is the held-out ones, or else
held-out ones.
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

from vitdiff_jax.data import pictures
from vitdiff_jax.data.pipeline import DataError
from vitdiff_jax.evaluation.measuring import Measure, Measured
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
    """One way to draw samples."""

    guidance: float
    guidance_low: float
    guidance_high: float
    ema: float | None
    ema_width: float | None  # in place of ema
    sampler: str
    steps: int

    def options(self) -> dict[str, Any]:
        """For `TrainedModel.sample_cond`."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in self.average()}

    def average(self) -> dict[str, float | None]:
        """For `trained.load`."""
        return {"ema": self.ema, "ema_width": self.ema_width}

    @property
    def name(self) -> str:
        """For a file."""
        interval = f"{self.guidance_low}-{self.guidance_high}"
        average = f"ema{self.ema}" if self.ema_width is None else f"width{self.ema_width}"
        return f"guidance{self.guidance}-on{interval}-{average}-{self.sampler}{self.steps}"


def rows(config: ConfigDict) -> list[Row]:
    """All combinations of config.evaluate.sweep; what it leaves empty is that of config.sample."""
    given, sweep = config.sample, config.evaluate.sweep
    _check_sweep(config)
    decays, widths = sweep.ema, sweep.ema_width
    if not decays and not widths:
        width = given.ema_width
        widths = () if width is None else (width,)
        decays = (experiment_lib.sampled_ema(config),) if width is None else ()
    emas = [(float(decay), None) for decay in decays] + [(None, float(w)) for w in widths]
    intervals = sweep.interval or ((given.guidance_low, given.guidance_high),)
    product = itertools.product(
        emas, sweep.sampler or (given.sampler.name,),
        sweep.steps or (given.steps,), intervals, sweep.guidance or (given.guidance,),
    )  # fmt: skip
    return [
        Row(float(guidance), float(low), float(high), *ema, sampler, steps)
        for ema, sampler, steps, (low, high), guidance in product
    ]


def _check_sweep(config: ConfigDict) -> None:
    """Refuse impossible values before anything is drawn."""
    sweep, known = config.evaluate.sweep, [float(decay) for decay in config.train.ema]

    def number(value):
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    def pair(value):
        return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(number, value))

    wanted = {
        "guidance": (number, "a number"),
        "interval": (pair, "a pair (low, high)"),
        "ema": (lambda value: number(value) and float(value) in known, f"one of train.ema {known}"),
        "steps": (lambda value: isinstance(value, int) and value >= 1, "a whole number from 1 on"),
    }
    for key, (good, what) in wanted.items():
        for value in sweep[key]:
            if not good(value):
                raise ConfigError(f"config.evaluate.sweep.{key}: {value!r} is not {what}")
    if sweep.ema and sweep.ema_width:
        raise ConfigError(
            "config.evaluate.sweep.ema_width: sweep either ema or ema_width, which stand for each"
            " other"
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
    """Measure; a table, evaluation.json with every setting, for a sweep evaluation.png.

    --samples: a folder, zip or .npz file of images in place of a model's. --truth: the true images
    in the same order, for psnr, ssim and lpips. --npz: write the samples as ADM's evaluators read
    them.
    """
    start = time.monotonic()
    if truth and not samples:
        raise ConfigError("--truth: needs --samples, the images to compare with it")
    if npz and samples:
        raise ConfigError("--npz: is for a model's samples, not for --samples")
    if npz:
        check_npz(workdir)
    if samples is None:
        report = _of_model(config, workdir, npz)
    elif config is None:
        raise ConfigError("--config: needed with --samples, for its data and config.evaluate")
    else:
        report = _of_pictures(config, workdir, samples, truth)
    report["seconds"] = round(time.monotonic() - start, 1)
    report["versions"] = versions()
    path = workdir / "evaluation.json"
    if jax.process_index() == 0:
        tables.write(path, report)
        if len(report["rows"]) > 1:
            plots.sweep(path.with_suffix(".png"), report)
    logs.say(f"written to {path}")


def _of_model(config: ConfigDict | None, workdir: epath.Path, npz: bool) -> dict[str, Any]:
    """The report on samples of a trained model, one row for each way to draw them."""
    stored = config_lib.read(workdir / "config.json") if config is None else config
    ways = rows(stored)
    model = model_lib.load(workdir, config, **ways[0].average())
    known = model.experiment
    evaluator = Evaluator(known.config, workdir, model.mesh)
    dataset = evaluator.setting.dataset
    model_lib.check_data({"shape": known.image_shape, "conditions": known.conditions}, dataset)
    found, average = [], ways[0].average()
    for row in ways:
        if row.average() != average:
            average = row.average()
            model = model_lib.load(workdir, config, **average)
        began = time.monotonic()
        measured = _measure_row(model, evaluator, row, npz)
        numbers = evaluator.results(measured)
        seconds = round(time.monotonic() - began, 1)
        calls = {"network_calls": _calls(known.config, row)}
        found.append(dataclasses.asdict(row) | calls | {"results": numbers, "seconds": seconds})
    for line in evaluator.warnings(measured, known.image_shape, dataset.crop, False):
        logs.say(f"warning: {line}")
    report = _report(evaluator, found, measured.count)
    if jax.process_index() == 0:
        for row in ways:
            (evaluator.home / f"{row.name}.npz").unlink(missing_ok=True)
    return report | {"step": model.step, "sample": known.config.sample.to_dict()}


def _calls(config: ConfigDict, row: Row) -> int:
    """Of the network for an image, where nothing guides; guidance may double them."""
    key = "sample.sampler"
    sampler = config_lib.find(config_lib.COMPONENTS[key], f"config.{key}.name", row.sampler)
    given = config.sample.sampler.to_dict() if row.sampler == config.sample.sampler.name else {}
    options = {name: value for name, value in given.items() if name != "name"}
    return importlib.import_module(sampler.__module__).calls(row.steps, **options)


def _measure_row(
    model: model_lib.TrainedModel, evaluator: Evaluator, row: Row, npz: bool
) -> Measured:
    """What a row's samples add up to; npz: they are also written into evaluation/."""
    config, dataset = model.experiment.config, evaluator.setting.dataset
    count, keep = config.evaluate.images, evaluator.home / f"{row.name}.npz"
    target = evaluator.home / f"samples-step{model.step}-{row.name}.npz"
    shape = (count, *model.experiment.image_shape)
    draw = functools.partial(model.sample_cond, **row.options())
    batches = sampled(draw, config, dataset, count)
    writes = npz and jax.process_index() == 0
    if writes and not paths.partial_of(target).exists() and not target.exists():
        keep.unlink(missing_ok=True)  # what was measured, was not written

    def written(first):
        target.parent.mkdir(parents=True, exist_ok=True)
        writer = NpzWriter(target, shape)
        for batch in batches(first):
            writer.write(first, batch.images)
            first += len(batch.images)
            yield batch

    logs.say(f"drawing {count:,} images: {row.name}")
    about = {
        "step": model.step, "row": row.name, "seed": config.evaluate.seed,
        "labels": config.evaluate.labels, "sample": config.sample.to_dict(), "npz": npz,
    }  # fmt: skip
    measured = measure(evaluator.parts, count, written if writes else batches, keep, about)
    if writes and paths.partial_of(target).exists():
        NpzWriter(target, shape).close(count)
    return measured


def _of_pictures(
    config: ConfigDict, workdir: epath.Path, samples: pathlib.Path, truth: pathlib.Path | None
) -> dict[str, Any]:
    """The report on images from anywhere."""
    images = pictures.open_pictures(samples, "--samples")
    true = pictures.open_pictures(truth, "--truth") if truth else None
    if len(images) < 2:
        raise DataError(f"--samples: {images.origin} are too few, at least 2 are needed")
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
    """Say the table, and give everything that led to it."""
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
    """The row with the best value of the first metric."""
    sign = -1 if metric.higher_is_better else 1
    return int(np.argmin([sign * row["results"][metric.name]["value"] for row in found]))
