"""Drawing images from a trained model: `--mode=sample`, and `vitdiff_jax.load` for Python.

Image i is drawn from the seed `seed + i` alone: the same seed gives the same image (to rounding)
in any batch, on any number of devices, and shows how one image changes over training.
"""

import functools
import json
import pathlib
import re
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vitdiff_jax import config as config_lib
from vitdiff_jax import logs, parallel, prompts
from vitdiff_jax.checkpoint import CheckpointError, Checkpoints
from vitdiff_jax.config import ConfigError
from vitdiff_jax.data.pipeline import Dataset
from vitdiff_jax.diffusion.process import guide
from vitdiff_jax.evaluation import memorised
from vitdiff_jax.experiment import Experiment, build, dataset, named, sampled_ema
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.models.conditions import not_told
from vitdiff_jax.prompts import Cond
from vitdiff_jax.train_step import ema_name

Draw = Callable[[Any, np.ndarray, Cond], np.ndarray]


class SamplingError(RuntimeError):
    """Sampling that failed; the message is one line."""


def make_draw(experiment: Experiment, options: ConfigDict, mesh: jax.sharding.Mesh) -> Draw:
    """Compile config.sample into (params, seeds [N], cond) -> uint8 images [N, H, W, C].

    One call of the compiled loop draws `options.batch` images, cut over all devices.
    """
    whole = ConfigDict({"sample": options})
    sampler, sampler_options = config_lib.component(whole, "sample.sampler")
    grid, grid_options = config_lib.component(whole, "sample.grid")
    schedule = experiment.process.schedule
    with named("config.sample."):
        times = grid(schedule, options.steps, **grid_options)
    sharding = parallel.batch_sharding(mesh)

    @functools.partial(jax.jit, out_shardings=parallel.replicated(mesh))
    def draw(params, seeds, cond):
        seeds, cond = jax.lax.with_sharding_constraint((seeds, cond), sharding)
        keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(seeds)
        noise = jax.vmap(lambda key: jax.random.normal(key, experiment.shape))(keys[:, 0])
        denoise = guide(
            experiment.denoiser(params, cond),
            experiment.denoiser(params, not_told(cond)),
            options.guidance,
            options.guidance_low,
            options.guidance_high,
        )
        _, sigma = schedule.alpha_sigma(jnp.ones(()))
        x = sampler(denoise, schedule, times, sigma * noise, keys[:, 1], **sampler_options)
        return image_lib.to_uint8(x), jnp.isfinite(x).all((1, 2, 3))

    def draw_all(params, seeds, cond):
        devices = mesh.size
        batch = min(options.batch, len(seeds))
        batch = -(-batch // devices) * devices
        padding = -len(seeds) % batch
        inputs = (seeds.astype(np.uint32), cond)
        inputs = jax.tree.map(lambda a: np.pad(a, [(0, padding)] + [(0, 0)] * (a.ndim - 1)), inputs)
        parts = []
        for i in range(0, len(seeds) + padding, batch):
            part = jax.tree.map(lambda a, i=i: a[i : i + batch], inputs)
            images, finite = draw(params, *part)
            finite = np.asarray(finite)[: len(seeds) - i]
            if not finite.all():
                seed = seeds[i + int(finite.argmin())]
                raise SamplingError(
                    f"the image of seed {seed} is not finite: the parameters are not, or"
                    f" config.sample.guidance={options.guidance} is too large"
                )
            parts.append(np.asarray(images))
        return np.concatenate(parts)[: len(seeds)]

    return draw_all


class Trained:
    """A trained model: `sample` draws images. Made by `load`."""

    def __init__(self, experiment: Experiment, params: Any, step: int, mesh: jax.sharding.Mesh):
        self.experiment, self.params, self.step, self.mesh = experiment, params, step, mesh
        self._programs: dict[tuple, Draw] = {}

    def sample(
        self,
        label: prompts.Label | None = None,
        n: int = 16,
        seed: int = 0,
        *,
        prompt: prompts.Texts | None = None,
        attributes: prompts.Texts | None = None,
        **options: Any,
    ) -> np.ndarray:
        """Draw n images, uint8 [n, H, W, C]; image i has the seed `seed + i`.

        label, prompt, attributes: what to draw, one for all or a list of n; see `prompts.ask`.
        options: other values for keys of config.sample, such as steps=25, guidance=2.0 or
        sampler="ddim", which then has its own defaults.
        """
        cond = prompts.ask(self.experiment.conditions, n, label, prompt, attributes)
        return self.draw(cond, n, seed, **options)

    def draw(self, cond: Cond, n: int, seed: int, **options: Any) -> np.ndarray:
        """The same for conditions that are arrays already, as of `prompts.of_examples`."""
        seeds = seed + np.arange(n, dtype=np.int64)
        return self._program(options)(self.params, seeds, cond)

    def _program(self, options: dict[str, Any]) -> Draw:
        """The compiled sampler with other values of config.sample, kept for the next call."""
        key = tuple(sorted(options.items()))
        if key not in self._programs:
            merged = self.experiment.config.sample.copy_and_resolve_references()
            for name, value in options.items():
                if name not in merged or name in ("grid", "ema"):
                    raise ConfigError(f"{name}: not an option that sampling takes")
                if name != "sampler":
                    merged[name] = value
                elif value != merged.sampler.name:
                    make = config_lib.find(config_lib.COMPONENTS["sample.sampler"], name, value)
                    merged.sampler = ConfigDict({"name": value} | config_lib.options(make))
            self._programs[key] = make_draw(self.experiment, merged, self.mesh)
        return self._programs[key]


def load(
    workdir: str | pathlib.Path, config: ConfigDict | None = None, *, ema: float | None = None
) -> Trained:
    """The trained model of a workdir: its newest undamaged checkpoint, the EMA of config.sample.

    config: its `sample` section counts; the rest must be that of the workdir. None: as trained.
    ema: another one of config.train.ema.
    """
    workdir = pathlib.Path(workdir)
    stored = config_lib.read(workdir / "config.json") if config is None else config
    if config is not None:
        check_same(workdir, config)
    if not (workdir / "checkpoints").is_dir():
        raise CheckpointError(f"{workdir}: no checkpoints here; train first with --mode=train")
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True, report=logs.say)
    step = checkpoints.newest()
    if step is None:
        raise CheckpointError(f"{workdir}: no checkpoints here; train first with --mode=train")
    meta = checkpoints.meta(step)
    experiment = build(stored, tuple(meta["shape"]), meta["conditions"])
    mesh = parallel.make_mesh()
    sharding = parallel.replicated(mesh)
    target = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
        experiment.param_shapes(),
    )
    name = sampled_ema(stored) if ema is None else ema_name(ema)
    params = checkpoints.restore_ema(step, name, target)
    checkpoints.close()
    return Trained(experiment, params, step, mesh)


def meta_of(dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint says of the data that it was trained on, as JSON has it."""
    return json.loads(json.dumps({"shape": dataset.shape, "conditions": dict(dataset.conditions)}))


def check_data(meta: dict[str, Any], dataset: Dataset) -> None:
    """Refuse data of another size, or with other classes, than a model was trained on."""
    trained = json.loads(json.dumps({**meta, "conditions": dict(meta["conditions"])}))
    for name, value in meta_of(dataset).items():
        if value != trained[name]:
            raise ConfigError(
                f"config.data: has the {name} {_short(value)}, but the model was trained with"
                f" {_short(trained[name])}; use the old data or another --workdir"
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 200 else f"{text[:200]}..."


def check_same(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Refuse a config that does not continue what the workdir holds, if it holds anything."""
    path = workdir / "config.json"
    if not path.exists():
        return
    if lines := config_lib.differences(config_lib.read(path, beside=config), config):
        raise ConfigError(
            f"{workdir} was trained with another config ({'; '.join(lines)});"
            " use the old values or another --workdir"
        )


def picture(images: np.ndarray, classes: int | None) -> np.ndarray:
    """A grid of images; with few classes drawn in turn, each class has its column."""
    columns = classes if classes and classes <= 16 else int(np.ceil(np.sqrt(len(images))))
    return image_lib.grid(images, columns)


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

    --label, --prompt, --attributes: what to draw, see `prompts.ask`. --nearest: also a picture of
    each image beside the training image that is nearest to it.
    """
    if n < 1:
        raise ConfigError(f"--n: {n} is less than 1")
    model = load(workdir, config)
    images = model.sample(label, n, seed, prompt=prompt, attributes=attributes)
    asked = {"label": label, "prompt": prompt, "attributes": attributes}
    which = "".join(f"-{k}-{_slug(v)}" for k, v in asked.items() if v is not None)
    path = workdir / "samples" / f"step{model.step}{which}-seed{seed}-n{n}.png"
    if jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        names = model.experiment.conditions.get("label")
        classes = len(names) if names and label is None else None
        image_lib.save_png(path, picture(images, classes))
        if npz:
            image_lib.save_npz(path.with_suffix(".npz"), images)
    logs.say(f"{n} images in {path}")
    if nearest:
        found = memorised.compare(images, dataset(model.experiment.config).train)
        beside = path.with_name(f"{path.stem}-nearest.png")
        if jax.process_index() == 0:
            image_lib.save_png(beside, memorised.picture(images, found))
        logs.say(f"{memorised.verdict(found)}; each beside its nearest in {beside}")


def _slug(text: str) -> str:
    """A few words of a wish as a part of a file's name."""
    words = re.sub(r"[^\w,+-]+", "_", text)
    return words if len(words) < 60 else f"{words[:50]}-{zlib.crc32(text.encode()):08x}"
