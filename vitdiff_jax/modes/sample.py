"""`--mode=sample`: samples of a trained model, as a PNG sheet and as arrays."""

import io
import re
import zlib
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.data import card
from vitdiff_jax.data.pipeline import Dataset
from vitdiff_jax.evaluation import memorisation
from vitdiff_jax.experiment.build import dataset, pixel_dataset
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import prompts, provenance
from vitdiff_jax.inference.loading import check_data, load
from vitdiff_jax.inference.model import TrainedModel
from vitdiff_jax.inference.sampling import class_names, restored_sheet, samples_sheet
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.interop import sheets
from vitdiff_jax.interop.sheets import Sheet
from vitdiff_jax.runtime import logs, paths, tables


def main(
    config: ConfigDict | None,
    workdir: epath.Path,
    *,
    n: int = 64,
    label: str | None = None,
    prompt: str | None = None,
    attributes: str | None = None,
    seed: int = 0,
    npz: bool = False,
    nearest: bool = False,
    latents: bool = False,
    frames: int = 0,
) -> None:
    """Sample n images into samples/*.png, with --npz also as arrays (ADM's format).

    A restoration model restores degraded held-out images, shown with the originals. --label,
    --prompt, --attributes: conditions, see `prompts.encode`. --nearest: also show each sample next
    to its nearest training image. --latents: write the float32 latents of a latent model to an .npz
    file, which needs no autoencoder. --frames: show that many frames of each sampling trajectory.
    """
    if latents and (npz or nearest or frames):
        raise ConfigError("--latents: writes no images; omit --npz, --nearest and --frames")
    if npz:
        image_lib.check_npz(workdir)
    model = load(workdir, config)
    given = {"label": label, "prompt": prompt, "attributes": attributes}
    kind = "-latents" if latents else f"-frames{frames}" if frames else ""
    data = _degraded(model)
    made = provenance.record(
        "sample", model.step, seed=seed, n=n, condition=given, frames=frames, latents=latents,
        parameters=model.digest, settings=provenance.of_sampling(model.experiment.config),
        **model.origin, **({"mark": data.mark} if data else {}),
    )  # fmt: skip
    other = provenance.differences(model.experiment.config, tables.read(workdir / "config.json"))
    name = _name(f"step{model.step}", given, other, f"seed{seed}-n{n}{kind}")
    path = provenance.free(workdir / "samples" / name, made, ".npz")
    if latents:
        _write_latents(path.with_suffix(".npz"), model, n, seed, given, made)
        return
    trained = pixel_dataset(model.experiment.config) if nearest else None  # before any file
    images, sheet = _sampled(model, data, n, seed, given, frames, other)
    if jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        sheets.write(path, sheet, provenance.chunk(made))
        if npz:
            provenance.write_beside(path.with_suffix(".npz"), made)
            image_lib.save_npz(path.with_suffix(".npz"), images)
    logs.say(f"{n} samples in {path}")
    if trained is not None:
        made |= {"data": provenance.of_data(model.experiment.config), "mark": trained.mark}
        _write_nearest(path, images, sheet, trained, made)


def _write_nearest(
    path: epath.Path, images: np.ndarray, sheet: Sheet, trained: Dataset, made: provenance.Record
) -> None:
    """Write each sample of a sheet beside its nearest training image. path: of the sheet."""
    for line in card.changed(path.parent.parent, trained):
        logs.say(line)
    found = memorisation.compare(images, trained.train)
    target = provenance.free(path.with_name(f"{path.stem}-nearest.png"), made)
    if jax.process_index() == 0:
        pairs = memorisation.sheet(images, found, sheet.names, **sheet.about)
        sheets.write(target, pairs, provenance.chunk(made, shows="nearest"))
    logs.say(f"{memorisation.summary(found)}; each next to its nearest in {target}")


def _degraded(model: TrainedModel) -> Dataset | None:
    """The dataset whose held-out images a restoration model is given; None for other models."""
    if "hint" not in model.experiment.conditions:
        return None
    data = dataset(model.experiment.config)
    check_data({"shape": model.experiment.shape, "conditions": model.experiment.conditions}, data)
    return data


def _sampled(
    model: TrainedModel, data: Dataset | None, n: int, seed: int, given: dict[str, Any],
    frames: int, other: list[str],
) -> tuple[np.ndarray, Sheet]:  # fmt: skip
    """Images [n, H, W, C], and a sheet of them; flags override the held-out images' conditions.

    data: see `_degraded`. other: settings that are not the workdir's own.
    """
    known = model.experiment.conditions
    about = {"step": model.step, "seed": seed} | ({"settings": other} if other else {})
    about |= {key: given[key] for key in ("prompt", "attributes") if given[key] is not None}
    if data is None:
        images = model.sample(n=n, seed=seed, frames=frames, **given)
        labels = {"label": known["label"]} if "label" in known else {}
        names = class_names(known, prompts.encode(labels, n, given["label"]))
        if frames:
            return images[:, -1], Sheet("trajectories", images, names=names, about=about)
        return images, samples_sheet(images, names, **about)
    if frames:
        raise ConfigError("--frames: not available for restoration models")
    cond = prompts.of_examples(data, n)
    if any(value is not None for value in given.values()):
        cond = prompts.encode(known, n, **given) | {"hint": cond["hint"]}
    images = model.sample_cond(cond, n, seed)
    return images, restored_sheet(images, cond["hint"], data, **about)


def _write_latents(
    path: epath.Path, model: TrainedModel, n: int, seed: int, given: dict[str, Any],
    made: dict[str, Any],
) -> None:  # fmt: skip
    """Write sampled latents without decoding: "latents" float32 [n, h, w, C]."""
    if model.experiment.config.latent.factor == 1:
        raise ConfigError("--latents: this is a pixel-space model")
    found = model.sample_cond(
        prompts.encode(model.experiment.conditions, n, **given), n, seed, latents=True
    )
    if jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        np.savez(file := io.BytesIO(), latents=found)
        provenance.write_beside(path, made)
        paths.write(path, file.getvalue())
    logs.say(f"{n} latents of shape {model.experiment.shape} in {path}")


def _name(first: str, given: dict[str, Any], other: list[str], last: str) -> str:
    """The name of a sheet, with its conditions and the settings that are not the workdir's own."""
    conditions = [f"{key}-{_slug(value)}" for key, value in given.items() if value is not None]
    settings = [_shortened("-".join(other))] if other else []
    return "-".join([first, *conditions, *settings, f"{last}.png"])


def _slug(text: str) -> str:
    """A condition as part of a file name."""
    return _shortened(re.sub(r"[^\w,+-]+", "_", text), text)


def _shortened(words: str, text: str = "") -> str:
    """Part of a file name, of a length that file systems take; text: what it stands for."""
    if len(data := words.encode()) < 60:
        return words
    return f"{data[:50].decode(errors='ignore')}-{zlib.crc32((text or words).encode()):08x}"
