"""`--mode=restore`: repair the user's own pictures, or compare methods on held-out images.

    --input=photo.jpg --task=inpaint --mask=mask.png   restored/photo.png, beside what it was
    --input=small.png --task=upscale:factor=2 --n=8    eight samples, their mean, where they differ
    --input=photo.jpg --task=edit --strength=0.6 --label=cat
    --config.restore.tasks="('dps/box','denoise')"     degrade held-out images, restore, measure

Everything that was done stands in restoration.json.
"""

import itertools
import os
import pathlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax import restoration
from vitdiff_jax.data import gather, photos
from vitdiff_jax.evaluation.measuring import Batch, Measure, Measured, Setting
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import model as model_lib
from vitdiff_jax.inference import tasks
from vitdiff_jax.inference.evaluator import versions
from vitdiff_jax.inference.restoring import Method, Restored, program, with_hint
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.runtime import logs, tables

SHOWN = 8
"""Images of a benchmark's picture, and samples beside a restored photograph, at most."""
WHITE = 0.5
"""The standard deviation, in units of [-1, 1], that an uncertainty map shows as white."""


def main(
    config: ConfigDict | None,
    workdir: epath.Path,
    *,
    input: pathlib.Path | None = None,
    task: str | None = None,
    mask: pathlib.Path | None = None,
    method: str | None = None,
    noise: float | None = None,
    strength: float = 0.5,
    degrade: bool = False,
    n: int = 1,
    seed: int = 0,
    label: str | None = None,
    prompt: str | None = None,
    attributes: str | None = None,
) -> None:
    """Restore into restored/, or without --input measure methods on the held-out images.

    --input: a picture or a folder. --task: what happened to it, see `tasks`. --mask: white where it
    is missing. --noise: its standard deviation in [-1, 1]; estimated where it is not given.
    --degrade: the input is whole, degrade it first. --n: samples of each. --strength: of an edit.
    """
    if n < 1:
        raise ConfigError(f"--n: {n} is less than 1")
    model = model_lib.load(workdir, config)
    model.check_pixels()
    if input is None:
        _compare(model, workdir)
        return
    how: dict[str, Any] = dict(
        mask=mask, method=method, noise_std=noise, strength=strength, degrade=degrade, n=n,
        seed=seed, label=label, prompt=prompt, attributes=attributes,
    )  # fmt: skip
    _restore_all(model, workdir, input, task, how)


def _restore_all(model, workdir, given: pathlib.Path, task: str | None, how) -> None:
    """Restore the user's pictures, each process one at a time, with its own devices."""
    places = list(_places(photos.find(given), given, workdir / "restored").items())
    own, processes, rows = model.own(), jax.process_count(), []
    for first in range(0, len(places), processes):
        now = places[first : first + processes]
        mine = [_restored(*place, own, task, how) for place in now[jax.process_index() :][:1]]
        for (path, stem), about in zip(now, itertools.chain(*gather.objects(mine))):
            where = {"input": str(path), "restored": f"{stem.relative_to(workdir)}.png"}
            rows.append(where | about)
            logs.say(
                f"{path.name} -> {stem}.png: {about['task']} by {about['method']}, noise"
                f" {about.get('noise_std', 0):.3f}, {about['seconds']:.1f} s,"
                f" {about['memory'] / 2**20:.0f} MiB a sample"
            )
        _report(workdir, {"rows": rows}, model)


def _restored(
    path: pathlib.Path, stem: epath.Path, model: model_lib.TrainedModel, task: str | None, how: Any
) -> dict[str, Any]:
    """Restore a picture into files that begin with `stem`; what was done."""
    photo = photos.read(path)
    found = model.restore(photo.x, task, **how)
    stem.parent.mkdir(parents=True, exist_ok=True)
    _write(stem, photo, found)
    return found.about


def _places(
    paths: list[pathlib.Path], given: pathlib.Path, home: epath.Path
) -> dict[pathlib.Path, epath.Path]:
    """Where each picture's results go, but for the suffix; a.png and a.jpg do not meet."""
    if given.resolve().is_relative_to(pathlib.Path(home).resolve()):
        raise ConfigError(f"--input: {given} lies where the results go; it would be written over")
    below = {path: path.relative_to(given) if path != given else path.name for path in paths}
    stems = {path: (home / name).with_suffix("") for path, name in below.items()}
    twice = [stem for stem in stems.values() if list(stems.values()).count(stem) > 1]
    return {path: stem if stem not in twice else home / below[path] for path, stem in stems.items()}


def _write(stem: epath.Path, photo: photos.Photo, found: Restored) -> None:
    """The picture in the kind that it came in, its samples, and all beside each other.

    By as many threads as there are cores: a PNG takes 0.4 s a megapixel, and leaves Python alone.
    """
    pictures, sheets, shown = {"": found.mean}, {}, [found.degraded, found.mean]
    if (n := len(found.samples)) > 1:
        pictures |= {f"-{i + 1}": image for i, image in enumerate(found.samples)}
        uncertain = np.clip(found.std / WHITE, 0, 1) * 2 - 1
        sheets["-uncertainty"] = np.asarray(image_lib.to_uint8(uncertain))
        shown += [*found.samples[: min(n, SHOWN)], uncertain]
    if found.truth is not None:
        shown.append(found.truth)
    channels = max(image.shape[2] for image in shown)
    sheet = np.stack([np.broadcast_to(a, (*a.shape[:2], channels)) for a in shown])
    sheets["-beside"] = image_lib.grid(np.asarray(image_lib.to_uint8(sheet)), len(shown))

    def save(name):
        path = stem.with_name(f"{stem.name}{name}.png")
        if name in sheets:
            image_lib.save_png(path, sheets[name])
        else:
            image_lib.save_png(path, photos.encode(photo, pictures[name]), photo.profile)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        written = [pool.submit(save, name) for name in [*sheets, *pictures]]
    for one in written:  # only now: what can be written is, also where another cannot
        one.result()


def _report(workdir: epath.Path, report: dict[str, Any], model: model_lib.TrainedModel) -> None:
    if jax.process_index() == 0:
        about = {"step": model.step, "config": model.experiment.config.restore.to_dict()}
        tables.write(workdir / "restoration.json", report | about | {"versions": versions()})


def _compare(model: model_lib.TrainedModel, workdir: epath.Path) -> None:
    """Degrade held-out images, restore them by each method, measure: a table and pictures."""
    config = model.experiment.config.restore
    if not config.tasks:
        raise ConfigError("--input: needed, or config.restore.tasks for a comparison of methods")
    methods = [Method.parse(text) for text in config.methods]
    data = experiment_lib.dataset(model.experiment.config)
    model_lib.check_data(
        {"shape": model.experiment.shape, "conditions": model.experiment.conditions}, data
    )
    metrics, rows = _metrics(config.metrics, Setting(lambda: data, model.mesh)), []
    count = min(config.images, len(data.heldout))
    for task in config.tasks:
        for row in _compare_on(task, methods, model, data, metrics, workdir / "restored"):
            rows.append(row)
            counts = {"images": count, "shown": min(SHOWN, count)}
            _report(workdir, {"rows": rows} | counts, model)
    for line in tables.aligned(tables.of_restoration(rows)):
        logs.say(line)
    logs.say(f"written to {workdir / 'restoration.json'}")


def _compare_on(task, methods, model, data, metrics, home) -> Iterator[dict[str, Any]]:
    """A row for the degraded images, and one for each method that serves the task."""
    parts = list(_damaged(task, model.experiment, data))
    truth, shown = [part[0] for part in parts], [part[2] for part in parts]
    noise_std = parts[0][1].noise_std
    name = "".join(c if c.isalnum() or c in "-." else "_" for c in task)
    about = {"task": task, "noise_std": noise_std, "picture": f"restored/{name}.png"}
    yield about | {"method": "degraded"} | _measured(shown, truth, metrics)
    columns = [shown]
    for method in _serving(task, parts[0][1].operator, methods, model):
        run = program(
            model.experiment, model.mesh, method, parts[0][1].operator, data.shape,
            model.experiment.config.restore.batch,
        )  # fmt: skip
        found, first = [], 0
        for x, degraded, image in parts:
            seeds = np.arange(first, first + len(x))
            cond = with_hint(model.experiment, model.cond(len(x)), image)
            found.append(
                run(model.weights, seeds, cond, degraded.y, degraded.operator, degraded.noise_std)
            )
            first += len(x)
        columns.append(found)
        costs = run.costs() | {"network_calls": method.calls(model.experiment.config.restore.steps)}
        logs.say(f"{task}, {method.text}: {first} images, {costs['seconds']} s each")
        yield about | {"method": method.text} | costs | _measured(found, truth, metrics)
    if jax.process_index() == 0:
        home.mkdir(parents=True, exist_ok=True)
        columns.append(truth)
        images = np.stack([np.concatenate(column)[:SHOWN] for column in columns], 1)
        sheet = np.asarray(image_lib.to_uint8(images.reshape(-1, *data.shape)))
        image_lib.save_png(home / f"{name}.png", image_lib.grid(sheet, len(columns)))


def _damaged(task: str, experiment, data) -> Iterator[tuple[np.ndarray, tasks.Case, np.ndarray]]:
    """(images, what is measured of them, that as images) in batches, an operator each."""
    config = experiment.config.restore
    count = min(config.images, len(data.heldout))
    for part in gather.read(data.heldout, range(count), config.batch):
        x, first = np.asarray(image_lib.from_uint8(part["image"])), int(part["index"][0])
        found = tasks.degraded(x, task, None, config.noise_std, first + np.arange(len(x)))
        yield x, found, found.images


def _serving(task, operator, methods, model) -> Iterator[Method]:
    """Those of the methods that can be used; of none given, all with their defaults."""
    hint = "hint" in model.experiment.conditions
    for method in methods or [Method(name, {}) for name in restoration.methods()]:
        traits = restoration.module(method.name).TRAITS
        if traits.serves(operator) and (hint or not traits.hint):
            yield method
        elif methods:
            logs.say(f"{task}: {method.text} does not serve it and is left out")


def _metrics(names: tuple[str, ...], setting: Setting) -> list[Measure]:
    """config.restore.metrics, of pairs of images."""
    with experiment_lib.named("config.restore.metrics: "):
        place = config_lib.METRICS
        return [config_lib.find(place, "config.restore.metrics", n)(setting) for n in names]


def _measured(found, truth, metrics: list[Measure]) -> dict[str, Any]:
    """{"results": each metric's, of batches of images beside the true ones}."""
    measured = Measured([part for metric in metrics for part in metric.parts], len(truth))
    with experiment_lib.named("config.restore.metrics: "):
        for images, true in zip(found, truth):
            images, true = (np.asarray(image_lib.to_uint8(a)) for a in (images, true))
            measured.update(Batch(images, {}, true))
        return {"results": {m.name: m.result(measured.of(m), ()) for m in metrics}}
