"""`--mode=sample`: images of a trained model, as a picture and as arrays."""

import pathlib
import re
import zlib
from typing import Any

import jax
from ml_collections import ConfigDict

from vitdiff_jax import logs, prompts
from vitdiff_jax.config import ConfigError
from vitdiff_jax.draw import beside, picture
from vitdiff_jax.evaluation import memorised
from vitdiff_jax.experiment import dataset
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.trained import Trained, check_data, load


def main(
    config: ConfigDict | None,
    workdir: pathlib.Path,
    *,
    n: int = 64,
    label: str | None = None,
    prompt: str | None = None,
    attributes: str | None = None,
    seed: int = 0,
    npz: bool = False,
    nearest: bool = False,
) -> None:
    """`--mode=sample`: n images into samples/*.png, with --npz also as arrays (ADM's layout).

    A model that was trained to restore does that with held-out images, beside what they were.
    --label, --prompt, --attributes: what to draw, see `prompts.ask`. --nearest: also a picture of
    each image beside the training image that is nearest to it.
    """
    if n < 1:
        raise ConfigError(f"--n: {n} is less than 1")
    model = load(workdir, config)
    asked = {"label": label, "prompt": prompt, "attributes": attributes}
    which = "".join(f"-{k}-{_slug(v)}" for k, v in asked.items() if v is not None)
    path = workdir / "samples" / f"step{model.step}{which}-seed{seed}-n{n}.png"
    images, sheet = _drawn(model, n, seed, asked)
    if jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        image_lib.save_png(path, sheet)
        if npz:
            image_lib.save_npz(path.with_suffix(".npz"), images)
    logs.say(f"{n} images in {path}")
    if nearest:
        found = memorised.compare(images, dataset(model.experiment.config).train)
        beside = path.with_name(f"{path.stem}-nearest.png")
        if jax.process_index() == 0:
            image_lib.save_png(beside, memorised.picture(images, found))
        logs.say(f"{memorised.verdict(found)}; each beside its nearest in {beside}")


def _drawn(model: Trained, n: int, seed: int, asked: dict[str, Any]):
    """(images, how to show them); what is asked for stands over what held-out images have."""
    known = model.experiment.conditions
    if "hint" not in known:
        classes = len(known["label"]) if "label" in known and asked["label"] is None else None
        images = model.sample(n=n, seed=seed, **asked)
        return images, picture(images, classes)
    data = dataset(model.experiment.config)
    check_data({"shape": model.experiment.shape, "conditions": known}, data)
    cond = prompts.of_examples(data, n)
    if any(wish is not None for wish in asked.values()):
        cond = prompts.ask(known, n, **asked) | {"hint": cond["hint"]}
    images = model.draw(cond, n, seed)
    return images, beside(images, cond["hint"], data)


def _slug(text: str) -> str:
    """A few words of a wish as a part of a file's name."""
    words = re.sub(r"[^\w,+-]+", "_", text)
    return words if len(words) < 60 else f"{words[:50]}-{zlib.crc32(text.encode()):08x}"
