"""`--mode=restore`: restores the user's images, or benchmarks methods on held-out images.

    --input=photo.jpg --task=inpaint --mask=mask.png   restored/photo.png, and a comparison
    --input=small.png --task=upscale:factor=2 --n=8    eight samples, their mean and uncertainty
    --input=photo.jpg --task=edit --strength=0.6 --label=cat
    --config.restore.tasks="('dps/box','denoise')"     degrade held-out images, restore, measure

All settings and results are recorded in restoration.json.
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
from vitdiff_jax.data import card, gather, listing, photos
from vitdiff_jax.data.files import Folder
from vitdiff_jax.evaluation.metric import Batch, Measure, Measured, Setting
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
"""Maximum number of images in a benchmark's figure, and of samples next to a restored image."""
WHITE = 0.5
"""The standard deviation, in units of [-1, 1], that is white in an uncertainty map."""


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
    """Restore into restored/, or without --input benchmark methods on the held-out images.

    --input: an image or a folder. --task: the degradation, see `inference.tasks`. --mask: white
    where pixels are missing. --noise: its standard deviation in units of [-1, 1]; default:
    estimated. --degrade: the input is clean, degrade it first. --n: samples per image. --strength:
    of an edit.
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
    """Restore the user's images, one at a time per process, on its local devices."""
    places = list(_places(photos.find(given), given, workdir / "restored").items())
    if given.is_dir():
        for line in card.of_inputs(listing.images(Folder(given)), given):
            logs.say(line)
    local, processes, rows = model.on_local_devices(), jax.process_count(), []
    for first in range(0, len(places), processes):
        now = places[first : first + processes]
        mine = [_restored(*place, local, task, how) for place in now[jax.process_index() :][:1]]
        for (path, stem), about in zip(now, itertools.chain(*gather.allgather_objects(mine))):
            where = {"input": str(path), "restored": f"{stem.relative_to(workdir)}.png"}
            rows.append(where | about)
            logs.say(
                f"{path.name} -> {stem}.png: {about['task']} by {about['method']}, noise std"
                f" {about.get('noise_std', 0):.3f}, {about['seconds']:.1f} s,"
                f" {about['memory'] / 2**20:.0f} MiB per sample"
            )
        _report(workdir, {"rows": rows}, model)


def _restored(
    path: pathlib.Path, stem: epath.Path, model: model_lib.TrainedModel, task: str | None, how: Any
) -> dict[str, Any]:
    """Restore an image into files that start with `stem`; returns how."""
    photo = photos.read(path)
    found = model.restore(photo.x, task, **how)
    stem.parent.mkdir(parents=True, exist_ok=True)
    _write(stem, photo, found)
    return found.about


def _places(
    paths: list[pathlib.Path], given: pathlib.Path, home: epath.Path
) -> dict[pathlib.Path, epath.Path]:
    """The output path of each image, without suffix; a.png and a.jpg do not collide."""
    if given.resolve().is_relative_to(pathlib.Path(home).resolve()):
        raise ConfigError(f"--input: {given} is in the output folder; it would be overwritten")
    below = {path: path.relative_to(given) if path != given else path.name for path in paths}
    stems = {path: (home / name).with_suffix("") for path, name in below.items()}
    twice = [stem for stem in stems.values() if list(stems.values()).count(stem) > 1]
    return {path: stem if stem not in twice else home / below[path] for path, stem in stems.items()}


def _write(stem: epath.Path, photo: photos.Photo, found: Restored) -> None:
    """Write the restored image in the format of the input, the samples and a comparison sheet.

    In parallel threads: encoding a PNG takes 0.4 s per megapixel and releases the GIL.
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
    for one in written:  # after all are submitted: one failure must not stop the others
        one.result()


def _report(workdir: epath.Path, report: dict[str, Any], model: model_lib.TrainedModel) -> None:
    if jax.process_index() == 0:
        about = {"step": model.step, "config": model.experiment.config.restore.to_dict()}
        tables.write(workdir / "restoration.json", report | about | {"versions": versions()})


def _compare(model: model_lib.TrainedModel, workdir: epath.Path) -> None:
    """Benchmark: degrade held-out images, restore them by each method, measure."""
    config = model.experiment.config.restore
    if not config.tasks:
        raise ConfigError("--input: required, or config.restore.tasks for a benchmark of methods")
    methods = [Method.parse(text) for text in config.methods]
    data = experiment_lib.dataset(model.experiment.config)
    model_lib.check_data(
        {"shape": model.experiment.shape, "conditions": model.experiment.conditions}, data
    )
    for line in card.changed(workdir, data):
        logs.say(line)
    metrics, rows = _metrics(config.metrics, Setting(lambda: data, model.mesh)), []
    count = min(config.images, len(data.heldout))
    for task in config.tasks:
        for row in _compare_on(task, methods, model, data, metrics, workdir / "restored"):
            rows.append(row)
            counts = {"images": count, "shown": min(SHOWN, count)}
            _report(workdir, {"rows": rows} | counts, model)
    for line in tables.aligned(tables.of_restoration(rows)):
        logs.say(line)
    logs.say(f"results in {workdir / 'restoration.json'}")


def _compare_on(task, methods, model, data, metrics, home) -> Iterator[dict[str, Any]]:
    """A row for the degraded images, and one for each applicable method."""
    parts = list(_degraded(task, model.experiment, data))
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
        costs = run.costs() | {"network_calls": method.nfe(model.experiment.config.restore.steps)}
        logs.say(f"{task}, {method.text}: {first} images, {costs['seconds']} s each")
        yield about | {"method": method.text} | costs | _measured(found, truth, metrics)
    if jax.process_index() == 0:
        home.mkdir(parents=True, exist_ok=True)
        columns.append(truth)
        images = np.stack([np.concatenate(column)[:SHOWN] for column in columns], 1)
        sheet = np.asarray(image_lib.to_uint8(images.reshape(-1, *data.shape)))
        image_lib.save_png(home / f"{name}.png", image_lib.grid(sheet, len(columns)))


def _degraded(
    task: str, experiment, data
) -> Iterator[tuple[np.ndarray, tasks.InverseProblem, np.ndarray]]:
    """Batches of (clean images, their inverse problem, the measurements as images)."""
    config = experiment.config.restore
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


def _metrics(names: tuple[str, ...], setting: Setting) -> list[Measure]:
    """The metrics of config.restore.metrics, which compare pairs of images."""
    with experiment_lib.config_errors("config.restore.metrics: "):
        place = config_lib.METRICS
        return [config_lib.find(place, "config.restore.metrics", n)(setting) for n in names]


def _measured(found, truth, metrics: list[Measure]) -> dict[str, Any]:
    """{"results": {metric: values}} of batches of restored images and their ground truth."""
    measured = Measured([part for metric in metrics for part in metric.parts], len(truth))
    with experiment_lib.config_errors("config.restore.metrics: "):
        for images, true in zip(found, truth):
            images, true = (np.asarray(image_lib.to_uint8(a)) for a in (images, true))
            measured.update(Batch(images, {}, true))
        return {"results": {m.name: m.result(measured.of(m), ()) for m in metrics}}
