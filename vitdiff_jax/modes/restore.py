"""`--mode=restore`: restores the user's images, or benchmarks methods on held-out images.

    --input=photo.jpg --task=inpaint --mask=mask.png   restored/photo.png, and a comparison
    --input=photo.jpg --task=inpaint --mask=auto       scratches that are found, photo-mask.png
    --input=small.png --task=upscale:factor=2 --n=8    eight samples, their mean and uncertainty
    --input=photo.jpg --task=edit --strength=0.6 --label=cat
    --config.restore.tasks="('dps/box','denoise')"     degrade held-out images, restore, measure

All settings and results are recorded in restoration.json.
"""

import errno
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.data import card, gather, listing, photos
from vitdiff_jax.data.files import Folder
from vitdiff_jax.data.pipeline import DataError
from vitdiff_jax.evaluation.metric import Setting
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import (
    arrays,
    benchmark,
    compression,
    inputs,
    loading,
    provenance,
    tasks,
)
from vitdiff_jax.inference.evaluator import versions
from vitdiff_jax.inference.model import TrainedModel
from vitdiff_jax.inference.restoring import Method, RestorationError, Restored
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.modes import report
from vitdiff_jax.runtime import logs, paths, tables

SHOWN = 8
"""Maximum number of samples next to a restored image."""
WHITE = 0.5
"""The standard deviation, in units of [-1, 1], that is white in an uncertainty map."""
FAILURES = {kind.__name__: kind for kind in (ConfigError, DataError, RestorationError)}
"""Of one picture among many, which do not stop the others."""
NAMED = 3
"""Pictures that an error message names, at most."""


def main(
    config: ConfigDict | None,
    workdir: epath.Path,
    *,
    input: pathlib.Path | None = None,
    task: str | None = None,
    mask: pathlib.Path | None = None,
    method: str | None = None,
    noise: float | None = None,
    strength: float | None = None,
    degrade: bool = False,
    n: int | None = None,
    seed: int | None = None,
    label: str | None = None,
    prompt: str | None = None,
    attributes: str | None = None,
) -> None:
    """Restore into restored/, or without --input benchmark methods on the held-out images.

    --input: an image or a folder. --task: the degradation, see `inference.tasks`. --mask: white
    where pixels are missing; auto: on scratches that are found. --noise: its standard deviation in
    units of [-1, 1]; default: estimated. --degrade: the input is clean, degrade it first. --n:
    samples per image, 1 by default. --seed: of them, 0 by default. --strength: of an edit.
    """
    arrays.check_noise(noise, "--noise")
    auto = mask == pathlib.Path(tasks.AUTO)
    if auto and pathlib.Path(tasks.AUTO).exists():
        raise ConfigError("--mask: auto means scratches, and is a file here; rename it")
    if strength is not None and task != "edit":
        raise ConfigError("--strength: of --task=edit alone; leave it out")
    of_input = dict(
        task=task, mask=mask, method=method, noise=noise, degrade=degrade or None, label=label,
        prompt=prompt, attributes=attributes, n=n, seed=seed,
    )  # fmt: skip
    given = [f"--{name}" for name, value in of_input.items() if value is not None]
    if input is None and given:
        raise ConfigError(
            f"{', '.join(given)}: of an --input, which is missing; a benchmark of methods has"
            " config.restore.tasks and config.restore.methods"
        )
    model = loading.load(workdir, config)
    model.check_pixels()
    if input is None:
        _compare(model, workdir)
        return
    how: dict[str, Any] = dict(
        mask=tasks.AUTO if auto else mask, method=method, noise_std=noise,
        strength=0.5 if strength is None else strength, degrade=degrade,
        n=1 if n is None else n, seed=seed or 0, label=label, prompt=prompt, attributes=attributes,
    )  # fmt: skip
    _restore_all(model, workdir, input, task, how)


def _record(
    model: TrainedModel, keys: Iterable[str], **settings: Any
) -> provenance.Record:  # fmt: skip
    """The record of a command. keys: of config.restore. settings: others."""
    config = model.experiment.config
    of_restore = {"restore": {key: config.restore.to_dict()[key] for key in keys}}
    return provenance.record(
        "restore", model.step, parameters=model.digest, **model.origin, **settings,
        settings=provenance.of_sampling(config) | of_restore,
    )  # fmt: skip


def _restore_all(model, workdir, given: pathlib.Path, task: str | None, how) -> None:
    """Restore the user's images, one at a time per process, on its local devices.

    One that cannot be restored does not stop the others; it is named at the end.
    """
    if how["method"]:
        Method.parse(how["method"])  # one error for all images
    model.cond(how["n"], how["label"], how["prompt"], how["attributes"])
    home, made, places = _plan(model, workdir, given, task, how)
    if given.is_dir():
        for line in card.of_inputs(listing.images(Folder(given)), given):
            logs.say(line)
    local, processes, rows = model.on_local_devices(), jax.process_count(), []
    for first in range(0, len(places), processes):
        now = list(places.items())[first : first + processes]
        mine = [
            _tried(path, home / stem, local, task, how, made[path])
            for path, stem in now[jax.process_index() :][:1]
        ]
        for (path, stem), about in zip(now, itertools.chain(*gather.allgather_objects(mine))):
            where = {"input": str(path)}
            if "failed" in about and len(places) > 1:
                logs.say(f"not restored: {_reason(where | about)}")
            elif "failed" not in about:
                where["restored"] = f"{home.name}/{stem}.png"
                logs.say(_line(path, home / stem, about))
            rows.append(where | about)
        if any("failed" not in row for row in rows):
            _report(workdir, {"rows": rows, "made": made[None]}, model)
    _check(rows, home, workdir)


def _line(path: pathlib.Path, stem: epath.Path, about: dict[str, Any]) -> str:
    first = f"the first of {about['first_of']} frames or pages, " if "first_of" in about else ""
    inks = "CMYK as RGB, " if about.get("cmyk") else ""
    share = about.get("mask")
    mask = f", scratches on {share:.2%} of it in {stem.name}-mask.png" if share else ""
    return (
        f"{path.name} -> {stem}.png: {first}{inks}{about['task']} by {about['method']}, noise std"
        f" {about.get('noise_std', 0):.3f}, {about['seconds']:.1f} s,"
        f" {about['memory'] / 2**20:.0f} MiB per sample{mask}"
    )


def _check(rows: Sequence[dict[str, Any]], home: epath.Path, workdir: epath.Path) -> None:
    """Raise an error that names the images that were not restored, if there are any."""
    failed = [row for row in rows if "failed" in row]
    if len(failed) == len(rows):
        raise FAILURES[failed[0]["error"]](failed[0]["failed"])
    if failed:
        report.at_end(workdir)
        lines = map(_reason, failed[:NAMED])
        more = f"; {len(failed) - NAMED} more in restoration.json" if len(failed) > NAMED else ""
        raise RestorationError(
            f"{len(failed)} of {len(rows)} images not restored: {'; '.join(lines)}{more}"
            f" (the others are in {home})"
        )


def _reason(row: dict[str, Any]) -> str:
    """Which image could not be restored, and why."""
    why = row["failed"].removeprefix(f"{row['input']}: ")
    return f"{pathlib.Path(row['input']).name}: {why}"


def _tried(path, stem: epath.Path, model, task: str | None, how, made) -> dict[str, Any]:
    """Restore an image into files that start with `stem`; returns how, or why not."""
    if longest := inputs.too_long(stem.name, how["n"]):
        why = f"{path}: {longest} would be a longer name than file systems take; rename the picture"
        return {"failed": why, "error": RestorationError.__name__}
    try:
        photo = photos.read(path)
        own = compression.resolved(task, path) if task and not how["degrade"] else task
        with logs.Bar(path.name) as bar:
            found = model.restore(photo.colours, own, progress=bar, **how)
    except tuple(FAILURES.values()) as error:
        return {"failed": str(error), "error": _kind(error)}
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        why = f"{path}: too large for this machine's memory; make it smaller, or cut it into parts"
        return {"failed": why, "error": RestorationError.__name__}
    if provenance.holds_other(target := stem.with_name(f"{stem.name}.png"), made):
        why = f"{path}: another command has written {target} meanwhile; run this one again"
        return {"failed": why, "error": RestorationError.__name__}
    stem.parent.mkdir(parents=True, exist_ok=True)
    _write(stem, photo, found, made)
    several = {"first_of": photo.count} if photo.count > 1 else {}
    mask = {} if found.mask is None else {"mask": float(found.mask.mean())}
    inks = {"cmyk": True} if photo.inks else {}
    return found.about | several | inks | mask


def _kind(error: Exception) -> str:
    return next(name for name, kind in FAILURES.items() if isinstance(error, kind))


def _plan(
    model, workdir: epath.Path, given: pathlib.Path, task: str | None, how: dict[str, Any]
) -> tuple[epath.Path, dict[Any, provenance.Record], dict[pathlib.Path, pathlib.PurePath]]:
    """(the output folder, the record of each image, of all at None, their paths in the folder).

    The folder is restored/, or another one if a file there is of another result.
    """
    auto = how["mask"] == tasks.AUTO
    stems = inputs.stems(inputs.find(given, workdir), given, ends := inputs.endings(how["n"], auto))
    settings = {key: how[key] for key in ("method", "noise_std", "degrade", "n", "seed")}
    settings |= {"strength": how["strength"]} if task == "edit" else {}
    made = _record(
        model, ("steps", "overlap"), task=task, files=inputs.digests_of_task(task), **settings,
        mask=how["mask"] if auto else inputs.digest(how["mask"]) if how["mask"] else None,
        condition={key: how[key] for key in ("label", "prompt", "attributes")},
    )  # fmt: skip
    of_each = {path: made | {"source": path.name, "sha256": inputs.digest(path)} for path in stems}
    all_of_them = hashlib.sha256("".join(sorted(m["sha256"] for m in of_each.values())).encode())
    made |= {"source": given.name, "sha256": all_of_them.hexdigest()[:16]}
    files = {f"{stem}{end}.png": of_each[path] for path, stem in stems.items() for end in ends}
    home = provenance.free_folder(workdir / "restored", files, made)
    _check_folder(home)
    return home, {**of_each, None: made}, stems


def _check_folder(home: epath.Path) -> None:
    """Raise OSError if nothing can be written there, which should not take minutes to find out."""
    if paths.remote(home):
        return
    place = pathlib.Path(home)
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is a file, not a folder for results", str(place))
    if not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, "is read-only; results go there", str(place))


def _write(stem: epath.Path, photo: photos.Photo, found: Restored, made: provenance.Record) -> None:
    """Write the restored image in the format of the input, the samples and a comparison sheet.

    In parallel threads: encoding a PNG takes 0.4 s per megapixel and releases the GIL.
    """
    pictures, sheets, shown = {"": found.mean}, {}, [found.degraded, found.mean]
    shows = {"": "restored", "-uncertainty": "uncertainty", "-beside": "beside", "-mask": "mask"}
    if found.mask is not None:
        sheets["-mask"] = found.mask[..., None].astype(np.uint8) * 255
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
        text = provenance.chunk(made, shows=shows.get(name, f"sample {name[1:]}"))
        if name in sheets:
            image_lib.save_png(path, sheets[name], text=text)
        else:
            image_lib.save_png(path, photos.encode(photo, pictures[name]), photo.profile, text)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        written = [pool.submit(save, name) for name in [*sheets, *pictures]]
    for one in written:  # after all are submitted: one failure must not stop the others
        one.result()


def _report(workdir: epath.Path, found: dict[str, Any], model: TrainedModel) -> None:
    if jax.process_index() == 0:
        path = workdir / "restoration.json"
        provenance.set_aside(path, found["made"])
        about = {"step": model.step, "config": model.experiment.config.restore.to_dict()}
        tables.write(path, found | about | {"versions": versions()})


def _compare(model: TrainedModel, workdir: epath.Path) -> None:
    """Benchmark: degrade held-out images, restore them by each method, measure."""
    config = model.experiment.config.restore
    if not config.tasks:
        raise ConfigError("--input: required, or config.restore.tasks for a benchmark of methods")
    arrays.check_noise(config.noise_std, "config.restore.noise_std")
    methods = [Method.parse(text) for text in config.methods]
    data: Any = None
    measures = benchmark.metrics(config.metrics, lambda: Setting(lambda: data, model.mesh))
    data = experiment_lib.dataset(model.experiment.config)
    loading.check_data(
        {"shape": model.experiment.shape, "conditions": model.experiment.conditions}, data
    )
    for line in card.changed(workdir, data):
        logs.say(line)
    keys = set(config) - {"tiles"}  # which changes nothing; each batch has its own random operator
    made = _record(
        model, keys, data=provenance.of_data(model.experiment.config), mark=data.mark,
        files=[inputs.digests_of_task(task) for task in config.tasks],
    )  # fmt: skip
    pictures = {task: benchmark.picture_of(task) for task in config.tasks}
    files = {pictures[task]: made | {"task": task} for task in config.tasks}
    home = provenance.free_folder(workdir / "restored", files, made)
    count, rows = min(config.images, len(data.heldout)), []
    for task, name in pictures.items():
        of_task = made | {"task": task}
        for row in benchmark.compare(task, methods, model, data, measures, home / name, of_task):
            rows.append(row)
            counts = {"images": count, "shown": min(benchmark.SHOWN, count)}
            _report(workdir, {"rows": rows, "made": made} | counts, model)
    for line in tables.aligned(tables.of_restoration(rows)):
        logs.say(line)
    logs.say(f"results in {workdir / 'restoration.json'}")
