"""`--mode=sample`: images of a trained model, as a picture and as arrays."""

import io
import re
import zlib
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.evaluation import memorised
from vitdiff_jax.experiment.build import dataset, pictures
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import prompts
from vitdiff_jax.inference.model import TrainedModel, check_data, load
from vitdiff_jax.inference.sampling import beside, picture
from vitdiff_jax.interop import images as image_lib
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
    """`--mode=sample`: n images into samples/*.png, with --npz also as arrays (ADM's layout).

    A model that was trained to restore does that with held-out images, beside what they were.
    --label, --prompt, --attributes: what to draw, see `prompts.ask`. --nearest: also a picture of
    each image beside the training image that is nearest to it. --latents: of a model of latents
    these, float32 in an .npz file, which needs no autoencoder. --frames: so many pictures of each
    image's way from noise, in a row.
    """
    if n < 1:
        raise ConfigError(f"--n: {n} is less than 1")
    if latents and (npz or nearest or frames):
        raise ConfigError("--latents: makes no pictures; leave out --npz, --nearest and --frames")
    if npz:
        image_lib.check_npz(workdir)
    model = load(workdir, config)
    asked = {"label": label, "prompt": prompt, "attributes": attributes}
    which = "".join(f"-{k}-{_slug(v)}" for k, v in asked.items() if v is not None)
    path = workdir / "samples" / f"step{model.step}{which}-seed{seed}-n{n}.png"
    if latents:
        _write_latents(path.with_suffix(".npz"), model, n, seed, asked)
        return
    if frames:
        path = path.with_name(f"{path.stem}-frames{frames}.png")
    images, sheet = _sampled(model, n, seed, asked, frames)
    if jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        image_lib.save_png(path, sheet)
        if npz:
            image_lib.save_npz(path.with_suffix(".npz"), images)
    logs.say(f"{n} images in {path}")
    if nearest:
        found = memorised.compare(images, pictures(model.experiment.config).train)
        beside = path.with_name(f"{path.stem}-nearest.png")
        if jax.process_index() == 0:
            image_lib.save_png(beside, memorised.picture(images, found))
        logs.say(f"{memorised.verdict(found)}; each beside its nearest in {beside}")


def _sampled(model: TrainedModel, n: int, seed: int, asked: dict[str, Any], frames: int):
    """(images, how to show them); what is asked for stands over what held-out images have."""
    known = model.experiment.conditions
    if "hint" not in known:
        classes = len(known["label"]) if "label" in known and asked["label"] is None else None
        images = model.sample(n=n, seed=seed, frames=frames, **asked)
        if frames:
            return images[:, -1], image_lib.grid(images.reshape(-1, *images.shape[2:]), frames)
        return images, picture(images, classes)
    if frames:
        raise ConfigError("--frames: is for models that draw from noise, not for restorers")
    data = dataset(model.experiment.config)
    check_data({"shape": model.experiment.shape, "conditions": known}, data)
    cond = prompts.of_examples(data, n)
    if any(wish is not None for wish in asked.values()):
        cond = prompts.ask(known, n, **asked) | {"hint": cond["hint"]}
    images = model.sample_cond(cond, n, seed)
    return images, beside(images, cond["hint"], data)


def _write_latents(path: epath.Path, model: TrainedModel, n: int, seed: int, asked: dict[str, Any]):
    """Latents as they are drawn, not decoded: "latents" float32 [n, h, w, C]."""
    if model.experiment.config.latent.factor == 1:
        raise ConfigError("--latents: the model draws pixels")
    found = model.sample_cond(
        prompts.ask(model.experiment.conditions, n, **asked), n, seed, latents=True
    )
    if jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        np.savez(file := io.BytesIO(), latents=found)
        paths.write(path, file.getvalue())
    logs.say(f"{n} latents of {model.experiment.shape} in {path}")


def _slug(text: str) -> str:
    """A few words of a wish as a part of a file's name."""
    words = re.sub(r"[^\w,+-]+", "_", text)
    return words if len(words) < 60 else f"{words[:50]}-{zlib.crc32(text.encode()):08x}"
