"""Restoration methods compared on held-out images: degraded, restored, measured."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from vitdiff_jax import restoration
from vitdiff_jax.data import gather
from vitdiff_jax.data.pipeline import Dataset
from vitdiff_jax.evaluation.metric import Batch, Measure, Measured, Setting
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment.build import config_errors
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import prompts, provenance, tasks
from vitdiff_jax.inference.model import TrainedModel
from vitdiff_jax.inference.restoring import Method, program, with_hint
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.runtime import logs

SHOWN = 8
"""Maximum number of images in a figure."""


def metrics(names: Sequence[str], setting: Callable[[], Setting]) -> list[Measure]:
    """The metrics of config.restore.metrics, which compare pairs of images, or ConfigError."""
    key = "config.restore.metrics"
    found = [(name, config_lib.find(config_lib.METRICS, key, name)) for name in names]
    for name, make in found:
        if not getattr(make, "paired", False):
            raise ConfigError(
                f"{key}: {name} measures sets of images; methods are compared on pairs, by metrics"
                " such as psnr, ssim and lpips"
            )
    with config_errors(f"{key}: "):
        return [make(setting()) for _, make in found]


def picture_of(task: str) -> str:
    """The file name of a task's figure."""
    return "".join(c if c.isalnum() or c in "-." else "_" for c in task) + ".png"


def compare(
    task: str, methods: Sequence[Method], model: TrainedModel, data: Dataset,
    measures: list[Measure], picture: epath.Path, made: provenance.Record,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """A row for the degraded images, and one for each applicable method; last, their figure."""
    parts = list(degraded(task, model.experiment.config.restore, data))
    truth, shown = [part[0] for part in parts], [part[2] for part in parts]
    about = {"task": task, "noise_std": parts[0][1].noise_std}
    about["picture"] = f"{picture.parent.name}/{picture.name}"
    yield about | {"method": "degraded"} | measured(shown, truth, measures)
    columns = [shown]
    for method in _serving(task, parts[0][1].operator, methods, model):
        run = program(
            model.experiment, model.mesh, method, parts[0][1].operator, data.shape,
            model.experiment.config.restore.batch,
        )  # fmt: skip
        found, first = [], 0
        for x, problem, image in parts:
            seeds = np.arange(first, first + len(x))
            cond = with_hint(model.experiment, _cond(model, data, first, len(x)), image)
            found.append(
                run(model.weights, seeds, cond, problem.y, problem.operator, problem.noise_std)
            )
            first += len(x)
        columns.append(found)
        costs = run.costs()
        logs.say(f"{task}, {method.text}: {first} images, {costs['seconds']} s each")
        yield about | {"method": method.text} | costs | measured(found, truth, measures)
    if jax.process_index() == 0:
        picture.parent.mkdir(parents=True, exist_ok=True)
        columns.append(truth)
        images = np.stack([np.concatenate(column)[:SHOWN] for column in columns], 1)
        sheet = np.asarray(image_lib.to_uint8(images.reshape(-1, *data.shape)))
        grid = image_lib.grid(sheet, len(columns))
        image_lib.save_png(picture, grid, text=provenance.chunk(made, shows="benchmark"))


def _cond(model: TrainedModel, data: Dataset, first: int, n: int) -> prompts.Cond:
    """Null conditions; the held-out images' own where the model has no null class."""
    if "label" in data.conditions and not model.experiment.config.diffusion.label_dropout:
        return prompts.of_heldout(data, range(first, first + n))
    return model.cond(n)


def degraded(
    task: str, config: Any, data: Dataset
) -> Iterator[tuple[np.ndarray, tasks.InverseProblem, np.ndarray]]:
    """Batches of (clean images, their inverse problem, the measurements as images).

    config: config.restore.
    """
    count = min(config.images, len(data.heldout))
    for part in gather.read(data.heldout, range(count), config.batch):
        x, first = np.asarray(image_lib.from_uint8(part["image"])), int(part["index"][0])
        found = tasks.from_clean(x, task, None, config.noise_std, first + np.arange(len(x)))
        yield x, found, found.images


def _serving(task, operator, methods, model) -> Iterator[Method]:
    """The applicable ones of the given methods; of all methods if none are given."""
    hint = "hint" in model.experiment.conditions
    for method in methods or [Method(name, {}) for name in restoration.methods()]:
        traits = restoration.module(method.name).TRAITS
        if traits.supports(operator) and (hint or not traits.hint):
            yield method
        elif methods:
            logs.say(f"{task}: {method.text} is not applicable and skipped")


def measured(found, truth, measures: list[Measure]) -> dict[str, Any]:
    """{"results": {metric: values}} of batches of restored images and their ground truth."""
    state = Measured([part for metric in measures for part in metric.parts], len(truth))
    with config_errors("config.restore.metrics: "):
        for images, true in zip(found, truth):
            images, true = (np.asarray(image_lib.to_uint8(a)) for a in (images, true))
            state.update(Batch(images, {}, true))
        return {"results": {m.name: m.result(state.of(m), ()) for m in measures}}
