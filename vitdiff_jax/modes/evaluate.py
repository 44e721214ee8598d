"""`--mode=evaluate`: metrics of a model's samples, over a sweep of sampling settings, or of files.

FID and other metrics for each row of the sweep (guidance scale and interval, EMA, sampler, steps),
next to the score of real images: of training images if the reference is the held-out split, else of
held-out images.
"""

import dataclasses
import functools
import importlib
import pathlib
import time
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.data import marks
from vitdiff_jax.data.pipeline import DataError
from vitdiff_jax.evaluation.metric import Measure, Measured
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import loading, pairs, provenance
from vitdiff_jax.inference.evaluator import (
    Evaluator,
    measure,
    of_pictures,
    outside,
    sampled,
    versions,
)  # fmt: skip
from vitdiff_jax.inference.model import TrainedModel
from vitdiff_jax.inference.sampling import SamplingError
from vitdiff_jax.inference.sweep import Row, rows, trained_row
from vitdiff_jax.interop.images import NpzWriter, check_npz
from vitdiff_jax.reporting import plots
from vitdiff_jax.runtime import logs, parallel, paths, tables


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
    truth, in files of the same names, for psnr, ssim and lpips. --npz: also write the samples, in
    the format of ADM's evaluator.
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
        provenance.set_aside(path, report["made"])
        tables.write(path, report)
        if len(report["rows"]) > 1:
            plots.sweep(path.with_suffix(".png"), report, provenance.chunk(report["made"]))
    logs.say(f"results in {path}")


def _of_model(config: ConfigDict | None, workdir: epath.Path, npz: bool) -> dict[str, Any]:
    """The report on samples of a trained model, one row per combination of settings."""
    stored = config_lib.read(workdir / "config.json") if config is None else config
    sweep, base = rows(stored), trained_row(workdir)
    model = loading.load(workdir, config, **sweep[0].which_ema())
    known = model.experiment
    evaluator = Evaluator(known.config, workdir, model.mesh)
    evaluator.check_unpaired()
    evaluator.check_shape(known.image_shape)
    dataset = evaluator.setting.dataset
    loading.check_data({"shape": known.image_shape, "conditions": known.conditions}, dataset)
    evaluator.check_reference(known.image_shape)
    found, loaded, keeps, last = [], sweep[0].which_ema(), [], None
    parameters, doubts = [], []
    for row in sweep:
        if row.which_ema() != loaded:
            loaded = row.which_ema()
            model = loading.load(workdir, config, **loaded)
        began, made = time.monotonic(), _record(model, row, dataset.mark)
        parameters.append(model.digest)
        keeps.append(_keep(evaluator, row.differences(base), made))
        result: dict[str, Any] = {"results": {}}
        try:
            last = _measure_row(model, evaluator, row, row.differences(base), npz, keeps[-1], made)
            result["results"] = evaluator.results(last)
            doubts += [_named(row, sweep) + line for line in outside(result["results"])]
        except SamplingError as error:  # the other rows may be good
            if row == sweep[-1] and last is None:
                raise
            logs.say(f"warning: no result of this row: {error}")
            result["failed"] = str(error)
        result["seconds"] = round(time.monotonic() - began, 1)
        calls = {"network_calls": _calls(known.config, row)}
        found.append(dataclasses.asdict(row) | calls | result)
    assert last is not None
    doubts += evaluator.warnings(last, known.image_shape, dataset.crop, False)
    report = _report(evaluator, found, last.count, doubts)
    if jax.process_index() == 0:
        for keep in keeps:
            keep.unlink(missing_ok=True)
    made = _command(
        evaluator, model.step, settings=provenance.of_sampling(known.config),
        parameters=parameters, mark=dataset.mark, **model.origin,
    )  # fmt: skip
    about = {"step": model.step, "sample": known.config.sample.to_dict(), "made": made}
    return report | about


def _named(row: Row, sweep: list[Row]) -> str:
    """The settings of a row that not all of a sweep have, before what is said of it."""
    shared = set.intersection(*(set(other.differences(None)) for other in sweep))
    return "".join(f"{words}, " for words in row.differences(None) if words not in shared)


def _command(evaluator: Evaluator, step: int | None, **what: Any) -> provenance.Record:
    """The record of a report."""
    config, file = evaluator.config, evaluator.file
    return provenance.record(
        "evaluate", step, data=provenance.of_data(config), evaluate=config.evaluate.to_dict(),
        reference=marks.of_file(file.path) if file else None, **what,
    )  # fmt: skip


def _record(model: TrainedModel, row: Row, mark: str) -> provenance.Record:
    """The record of the samples of a row, with conditions of a data set of this mark."""
    config = model.experiment.config
    return provenance.record(
        "evaluate", model.step, parameters=model.digest, settings=row.of_sampling(config),
        data=provenance.of_data(config), seed=config.evaluate.seed, n=config.evaluate.images,
        labels=config.evaluate.labels, mark=mark, **model.origin,
    )  # fmt: skip


def _calls(config: ConfigDict, row: Row) -> int:
    """Number of network evaluations per sample without guidance, which may double them."""
    key = "sample.sampler"
    sampler = config_lib.find(config_lib.COMPONENTS[key], f"config.{key}.name", row.sampler)
    given = config.sample.sampler.to_dict() if row.sampler == config.sample.sampler.name else {}
    options = {name: value for name, value in given.items() if name != "name"}
    return importlib.import_module(sampler.__module__).nfe(row.steps, **options)


def _measure_row(
    model: TrainedModel, evaluator: Evaluator, row: Row, names: dict[str, str], npz: bool,
    keep: epath.Path, made: provenance.Record,
) -> Measured:  # fmt: skip
    """Sample and measure a row; npz: also write the samples into evaluation/.

    names: `Row.differences`. keep: the file of the statistics so far.
    """
    config, dataset = model.experiment.config, evaluator.setting.dataset
    count, stem = config.evaluate.images, "-".join([f"samples-step{model.step}", *names.values()])
    target = provenance.free(evaluator.home / f"{stem}.npz", made)
    shape = (count, *model.experiment.image_shape)
    sample = functools.partial(model.sample_cond, **row.options())
    batches = sampled(sample, config, dataset, count)
    writes = npz and jax.process_index() == 0
    if writes and not paths.partial_path(target).exists() and not target.exists():
        keep.unlink(missing_ok=True)  # measured earlier, but not written

    def written(first):
        provenance.write_beside(target, made)
        writer = NpzWriter(target, shape)
        for batch in batches(first):
            writer.write(first, batch.images)
            first += len(batch.images)
            yield batch

    logs.say(f"sampling {count:,} images" + (f": {', '.join(names)}" if names else ""))
    about = {"made": provenance.digest(made), "npz": npz}
    measured = measure(evaluator.parts, count, written if writes else batches, keep, about)
    if writes and paths.partial_path(target).exists():
        NpzWriter(target, shape).close(count)
    return measured


def _keep(evaluator: Evaluator, names: dict[str, str], made: provenance.Record) -> epath.Path:
    """The file of a row's statistics so far; names: `Row.differences`."""
    return evaluator.home / f"{'-'.join(['row', *names.values(), provenance.digest(made)])}.npz"


def _of_pictures(
    config: ConfigDict, workdir: epath.Path, samples: pathlib.Path, truth: pathlib.Path | None
) -> dict[str, Any]:
    """The report on images from files."""
    images, true = pairs.open_pair(samples, truth)
    if len(images) < 2:
        raise DataError(f"--samples: {images.origin} are too few, at least 2 are required")
    evaluator = Evaluator(config, workdir, parallel.make_mesh())
    if truth is None:
        evaluator.check_unpaired()
    evaluator.check_shape(images.shape)
    evaluator.check_reference(images.shape)
    if truth is not None and not any(getattr(m, "paired", False) for m in evaluator.metrics):
        raise ConfigError(
            "--truth: no metric of config.evaluate.metrics compares pairs; add psnr, ssim or lpips,"
            " or omit it"
        )
    logs.say(f"measuring {images.origin}")
    measured = measure(evaluator.parts, len(images), of_pictures(images, true), None, {})
    results = evaluator.results(measured)
    doubts = [*outside(results), *evaluator.warnings(measured, images.shape, None, images.lossy)]
    about = {"samples": pairs.stamp(samples), "truth": truth and pairs.stamp(truth)}
    made = _command(evaluator, None, **about)
    found = [{"samples": str(samples), "results": results}]
    report = _report(evaluator, found, len(images), doubts)
    return report | {"truth": str(truth) if truth else None, "made": made}


def _report(
    evaluator: Evaluator, found: list[dict[str, Any]], count: int, doubts: list[str]
) -> dict[str, Any]:
    """Print the table and the reasons to doubt it, and return both with all settings."""
    for line in doubts:
        logs.say(f"warning: {line}")
    real = evaluator.real_scores(count)
    best = _best(evaluator.metrics[0], found)
    for line in tables.table(found, real, best):
        logs.say(line)
    return {
        "rows": found,
        "best": best,
        "images": count,
        "warnings": doubts,
        "real_images": {"of": real[0], "results": real[1]} if real else None,
        "reference": evaluator.file.about | {"file": evaluator.split}
        if evaluator.file
        else evaluator.split,
        "data": evaluator.config.data.to_dict(),
        "crop": evaluator.crop(),
        "evaluate": evaluator.config.evaluate.to_dict(),
    }


def _best(metric: Measure, found: list[dict[str, Any]]) -> int | None:
    """Index of the row with the best value of the first metric; None if none has one."""
    sign, ideal = -1 if metric.higher_is_better else 1, getattr(metric, "ideal", None)
    values = [row["results"].get(metric.name, {}).get("value") for row in found]
    known = {
        i: sign * value if ideal is None else abs(value - ideal)
        for i, value in enumerate(values)
        if tables.is_finite(value)
    }
    return min(known, key=known.__getitem__, default=None)
