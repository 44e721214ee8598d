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
from vitdiff_jax.evaluation import memorisation
from vitdiff_jax.experiment.build import dataset, pixel_dataset
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import prompts
from vitdiff_jax.inference.model import TrainedModel, check_data, load
from vitdiff_jax.inference.sampling import class_names, restored_sheet, samples_sheet
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.interop import sheets
from vitdiff_jax.interop.sheets import Sheet
from vitdiff_jax.runtime import logs, paths


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
    if n < 1:
        raise ConfigError(f"--n: {n} is less than 1")
    if latents and (npz or nearest or frames):
        raise ConfigError("--latents: writes no images; omit --npz, --nearest and --frames")
    if npz:
        image_lib.check_npz(workdir)
    model = load(workdir, config)
    given = {"label": label, "prompt": prompt, "attributes": attributes}
    which = "".join(f"-{k}-{_slug(v)}" for k, v in given.items() if v is not None)
    path = workdir / "samples" / f"step{model.step}{which}-seed{seed}-n{n}.png"
    if latents:
        _write_latents(path.with_suffix(".npz"), model, n, seed, given)
        return
    if frames:
        path = path.with_name(f"{path.stem}-frames{frames}.png")
    images, sheet = _sampled(model, n, seed, given, frames)
    if jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        sheets.write(path, sheet)
        if npz:
            image_lib.save_npz(path.with_suffix(".npz"), images)
    logs.say(f"{n} samples in {path}")
    if nearest:
        data = pixel_dataset(model.experiment.config)
        for line in card.changed(workdir, data):
            logs.say(line)
        found = memorisation.compare(images, data.train)
        target = path.with_name(f"{path.stem}-nearest.png")
        if jax.process_index() == 0:
            sheets.write(target, memorisation.sheet(images, found, sheet.names, **sheet.about))
        logs.say(f"{memorisation.summary(found)}; each next to its nearest in {target}")


def _sampled(
    model: TrainedModel, n: int, seed: int, given: dict[str, Any], frames: int
) -> tuple[np.ndarray, Sheet]:
    """Images [n, H, W, C], and a sheet of them; flags override the held-out images' conditions."""
    known = model.experiment.conditions
    about = {"step": model.step, "seed": seed}
    about |= {key: given[key] for key in ("prompt", "attributes") if given[key] is not None}
    if "hint" not in known:
        images = model.sample(n=n, seed=seed, frames=frames, **given)
        labels = {"label": known["label"]} if "label" in known else {}
        names = class_names(known, prompts.encode(labels, n, given["label"]))
        if frames:
            return images[:, -1], Sheet("trajectories", images, names=names, about=about)
        return images, samples_sheet(images, names, **about)
    if frames:
        raise ConfigError("--frames: not available for restoration models")
    data = dataset(model.experiment.config)
    check_data({"shape": model.experiment.shape, "conditions": known}, data)
    cond = prompts.of_examples(data, n)
    if any(value is not None for value in given.values()):
        cond = prompts.encode(known, n, **given) | {"hint": cond["hint"]}
    images = model.sample_cond(cond, n, seed)
    return images, restored_sheet(images, cond["hint"], data, **about)


def _write_latents(path: epath.Path, model: TrainedModel, n: int, seed: int, given: dict[str, Any]):
    """Write sampled latents without decoding: "latents" float32 [n, h, w, C]."""
    if model.experiment.config.latent.factor == 1:
        raise ConfigError("--latents: this is a pixel-space model")
    found = model.sample_cond(
        prompts.encode(model.experiment.conditions, n, **given), n, seed, latents=True
    )
    if jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        np.savez(file := io.BytesIO(), latents=found)
        paths.write(path, file.getvalue())
    logs.say(f"{n} latents of shape {model.experiment.shape} in {path}")


def _slug(text: str) -> str:
    """A condition as part of a file name, shortened."""
    words = re.sub(r"[^\w,+-]+", "_", text)
    return words if len(words) < 60 else f"{words[:50]}-{zlib.crc32(text.encode()):08x}"
