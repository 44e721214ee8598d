"""A trained model, as `vitdiff_jax.load` gives it from a workdir: it draws and restores images."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.data.pipeline import Dataset
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment import ema as ema_lib
from vitdiff_jax.experiment.build import Experiment, build, named, sampled_ema
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import prompts, restoring, tasks
from vitdiff_jax.inference.prompts import Cond
from vitdiff_jax.inference.sampling import SampleFn, make_sample_fn
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.models.conditions import NULL
from vitdiff_jax.operators.mask import read as read_mask
from vitdiff_jax.runtime import logs, parallel, paths
from vitdiff_jax.runtime.checkpoint import CheckpointError, Checkpoints

FIXED = ("grid", "ema", "ema_width", "guide_with")
"""What a loaded model does not take as other options of config.sample."""
LICENCE, IMPORTED = "LICENCE.txt", "imported.json"
"""Files of a workdir whose weights come from elsewhere; the second only if none were trained in it.
"""
FAR = 0.2
"""An average made of others may differ so much in its weights over time, root mean square. Eight
checkpoints with the widths 0.05 and 0.10 give all widths from 0.03 to 0.2 to within 0.10.
"""


class TrainedModel:
    """A trained model: `sample` draws images. Made by `load`.

    licence: of imported weights. guide_params: of `experiment.guide`.
    """

    def __init__(
        self, experiment: Experiment, params: Any, step: int, mesh: jax.sharding.Mesh,
        licence: str = "", guide_params: Any = None,
    ):  # fmt: skip
        self.experiment, self.params, self.step, self.mesh = experiment, params, step, mesh
        self.licence, self.weights = licence, (params, guide_params)
        self._programs: dict[tuple, SampleFn] = {}  # by the options that differ from the config's
        self._restorer = restoring.Restorer(experiment, self.weights, mesh)

    def sample(
        self,
        label: prompts.Label | None = None,
        n: int = 16,
        seed: int = 0,
        *,
        prompt: prompts.Texts | None = None,
        attributes: prompts.Texts | None = None,
        hint: np.ndarray | None = None,
        **options: Any,
    ) -> np.ndarray:
        """Draw n images, uint8 [n, H, W, C]; image i has the seed `seed + i`.

        label, prompt, attributes: what to draw, one for all or a list of n; see `prompts.ask`.
        hint: float [n, H, W, C] in [-1, 1], the degraded images where the model was trained to
        restore such; None: it draws without.
        options: other values for keys of config.sample, such as steps=25, guidance=2.0 or
        sampler="ddim", which then has its own defaults; frames=8: that many pictures of each
        image's way from noise, [n, 8, H, W, C].
        """
        cond = prompts.ask(self.experiment.conditions, n, label, prompt, attributes)
        return self.sample_cond(cond | self._hint(hint, n), n, seed, **options)

    def _hint(self, hint: np.ndarray | None, n: int) -> Cond:
        """The condition that degraded images are, none told if there are none."""
        known, shape = self.experiment.conditions, (n, *self.experiment.shape[:2])
        if "hint" not in known:
            if hint is not None:
                raise ConfigError(
                    "hint: the model was not trained to restore; see config.degradation"
                )
            return {}
        shape = (*shape, known["hint"])
        if hint is None:
            return {"hint": np.full(shape, NULL["hint"], np.float32)}
        if np.shape(hint) != shape:
            raise ConfigError(f"hint: of shape {np.shape(hint)}, not {shape}")
        return {"hint": np.asarray(hint, np.float32)}

    def restore(
        self, image: np.ndarray, task: str | None = None, *,
        mask: np.ndarray | paths.Given | None = None, method: str | None = None,
        noise_std: float | None = None, degrade: bool = False, strength: float = 0.5,
        n: int = 1, seed: int = 0,
        label: prompts.Label | None = None, prompt: prompts.Texts | None = None,
        attributes: prompts.Texts | None = None,
    ) -> restoring.Restored:  # fmt: skip
        """Repair a picture of any size: `.images` has n samples, uint8 [n, H, W, C].

        image: uint8 or float in [-1, 1], [H, W] or [H, W, 1 or 3]. task: what happened to it, see
        `tasks`; "edit" redraws it with SDEdit from time `strength`; None: inpaint if there is a
        mask, else denoise. mask: bool [H, W] or a picture's path, True or white where the image is
        missing, or may be edited. method: of `restoration`; None: the recommended one. noise_std:
        in units of [-1, 1]; None: estimated. degrade: the image is whole, degrade it first.
        label, prompt, attributes: what is on it, as in `sample`; None: not told.
        """
        self.check_pixels()
        x = _as_floats(image)
        with named("mask: "):
            file = isinstance(mask, (str, os.PathLike))
            missing = read_mask(paths.local(mask), x.shape) if file else mask
        task = task or ("denoise" if mask is None else "inpaint")
        if task == "inpaint" and mask is None:
            raise ConfigError("mask: needed for the task inpaint, white where the image is missing")
        cond = self.cond(n, label, prompt, attributes)
        seeds, channels = seed + np.arange(n), self.experiment.shape[2]
        if task == "edit":
            return self._restorer.edit(x, strength, missing, cond, seeds)
        if not degrade:
            case = tasks.as_given(x, channels, task, missing, noise_std, seed)
            return self._restorer.restore(case, method, cond, seeds)
        planes = tasks.planes_of(x, channels)
        of_planes = np.full(len(planes), seed)
        case = tasks.degraded(planes, task, missing, noise_std, of_planes, x.shape[2])
        found = self._restorer.restore(case, method, cond, seeds)
        return dataclasses.replace(found, truth=x)

    def own(self) -> "TrainedModel":
        """The same on the devices of this process, for what it does apart from the others."""
        if jax.process_count() == 1:
            return self
        mesh = parallel.make_mesh(devices=jax.local_devices())

        def here(tree):
            parts = jax.tree.map(lambda a: a.addressable_data(0), tree)
            return jax.device_put(parts, parallel.replicated(mesh))

        params, others = map(here, self.weights)
        return TrainedModel(self.experiment, params, self.step, mesh, self.licence, others)

    def check_pixels(self) -> None:
        """Refuse a model of latents, on which no method of restoration works yet."""
        if self.experiment.config.latent.factor > 1:
            raise ConfigError(
                "config.latent.factor: restoration needs a model of pixels, this one is of latents"
            )

    def cond(self, n: int, label=None, prompt=None, attributes=None) -> Cond:
        """Conditions of n images to be restored, in which what is None is not told."""
        known = {k: v for k, v in self.experiment.conditions.items() if k != "hint"}
        if label is None and "label" in known:
            label = -1
        return prompts.ask(known, n, label, prompt, attributes)

    def sample_cond(
        self, cond: Cond, n: int, seed: int, *, latents: bool = False, frames: int = 0,
        **options: Any,
    ) -> np.ndarray:  # fmt: skip
        """The same for conditions that are arrays already, as of `prompts.of_examples`.

        latents, frames: what else than images there can be, see `sampling.make_sample_fn`.
        """
        seeds = seed + np.arange(n, dtype=np.int64)
        draw = self._program(dict(latents=latents, frames=frames), options)
        return draw(self.weights, seeds, cond)

    def _program(self, kind: dict[str, Any], options: dict[str, Any]) -> SampleFn:
        """The compiled sampler with other values of config.sample, kept for the next call."""
        key = (*kind.values(), *sorted(options.items()))
        if key not in self._programs:
            merged = self.experiment.config.sample.copy_and_resolve_references()
            for name, value in options.items():
                if name not in merged or name in FIXED:
                    raise ConfigError(f"{name}: not an option that sampling takes")
                if name != "sampler":
                    merged[name] = value
                elif value != merged.sampler.name:
                    make = config_lib.find(config_lib.COMPONENTS["sample.sampler"], name, value)
                    merged.sampler = ConfigDict({"name": value} | config_lib.options(make))
            self._programs[key] = make_sample_fn(self.experiment, merged, self.mesh, **kind)
        return self._programs[key]


def _as_floats(image: np.ndarray) -> np.ndarray:
    """A picture as float32 [H, W, C] in [-1, 1]."""
    x = np.asarray(image)
    x = x[..., None] if x.ndim == 2 else x
    if x.ndim != 3 or x.shape[2] not in (1, 3):
        raise ConfigError(f"image: of shape {x.shape}, not [height, width, 1 or 3]")
    x = np.asarray(image_lib.from_uint8(x)) if x.dtype == np.uint8 else x.astype(np.float32)
    if not np.isfinite(x).all() or abs(x).max() > 1.001:
        raise ConfigError("image: has values that are not in [-1, 1]; or give uint8")
    return x


def load(
    workdir: paths.Given, config: ConfigDict | None = None, *,
    ema: float | None = None, ema_width: float | None = None,
) -> TrainedModel:  # fmt: skip
    """The trained model of a workdir: its newest undamaged checkpoint, the EMA of config.sample.

    config: its `sample` section counts; the rest must be that of the workdir. None: as trained.
    ema: another one of config.train.ema. ema_width: one of that relative width, see `averages`.
    """
    workdir = paths.reached(workdir)
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
    name = sampled_ema(stored) if ema is None else ema_lib.decay_name(ema)
    name = name if ema_width is None else ema_lib.width_name(ema_width)
    if name.startswith("width"):
        params = _blended(checkpoints, step, name, stored.train.ema_widths, target)
    else:
        params = checkpoints.restore_emas(step, [name], target)[name]
    checkpoints.close()
    licence = workdir / LICENCE
    text = licence.read_text() if licence.is_file() else ""
    guide, others = guide_of(experiment)
    experiment = dataclasses.replace(experiment, guide=guide)
    return TrainedModel(experiment, params, step, mesh, text, others)


def guide_of(experiment: Experiment) -> tuple[Experiment | None, Any]:
    """The model of config.sample.guide_with and its parameters; ConfigError if it cannot guide."""
    path = experiment.config.sample.guide_with
    if not path:
        return None, None
    own: Any = config_lib.read(paths.reached(path) / "config.json")
    own.sample.guide_with = None  # it need not be guided itself
    found = load(path, own)
    for what, one, other in (
        ("schedule", found.experiment.process.schedule, experiment.process.schedule),
        ("image size", found.experiment.shape, experiment.shape),
        ("conditions", *(_as_json(e.conditions) for e in (found.experiment, experiment))),
    ):
        if one != other:
            raise ConfigError(
                f"config.sample.guide_with: {path} has another {what} than the model, so that it"
                f" cannot guide it: {_short(one)} and {_short(other)}"
            )
    return found.experiment, found.params


def _blended(
    checkpoints: Checkpoints, step: int, name: str, widths: tuple[float, ...], target: Any
) -> Any:
    """The average of a width at a step, from those of the given widths in all checkpoints."""
    kept = [(n, w) for n in checkpoints.undamaged() if n <= step for w in widths]
    width = float(name.removeprefix("width"))
    shares, left = ema_lib.blend(kept, step, width)
    if left > FAR:
        raise ConfigError(
            f"config.sample.ema_width: {width} cannot be made from the averages of widths {widths}"
            f" in {len(kept) // len(widths)} checkpoints: it would be {left:.0%} off; keep more"
            " checkpoints with config.checkpoint.keep_every, or take another width"
        )
    total = jax.tree.map(lambda a: np.zeros(a.shape, np.float64), target)
    names = [ema_lib.width_name(w) for w in widths]
    for n, of_step in zip(dict(kept), shares.reshape(-1, len(widths))):
        found = checkpoints.restore_emas(n, names, target)
        for name, share in zip(names, of_step):
            total = jax.tree.map(lambda sum, a, s=share: sum + s * a, total, found[name])
    return jax.tree.map(lambda a, t: jax.device_put(a.astype(t.dtype), t.sharding), total, target)


def meta_of(dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint says of the data that it was trained on, as JSON has it."""
    return _as_json({"shape": dataset.shape, "conditions": dict(dataset.conditions)})


def check_data(meta: dict[str, Any], dataset: Dataset) -> None:
    """Refuse data of another size, or with other classes, than a model was trained on."""
    trained = _as_json({**meta, "conditions": dict(meta["conditions"])})
    for name, value in meta_of(dataset).items():
        if value != trained[name]:
            raise ConfigError(
                f"config.data: has the {name} {_short(value)}, but the model was trained with"
                f" {_short(trained[name])}; use the old data or another --workdir"
            )


def _as_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes out of a file, where there are no tuples."""
    return json.loads(json.dumps(dict(facts)))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 200 else f"{text[:200]}..."


def check_same(workdir: epath.Path, config: ConfigDict) -> None:
    """Refuse a config that does not continue what the workdir holds, if it holds anything."""
    path = workdir / "config.json"
    if not path.exists():
        return
    lines = config_lib.differences(config_lib.read(path, beside=config), config)
    if (workdir / IMPORTED).exists():  # it is not known which data they are from; see `check_data`
        lines = [line for line in lines if not line.startswith("data.")]
    if lines:
        raise ConfigError(
            f"{workdir} was trained with another config ({'; '.join(lines)});"
            " use the old values or another --workdir"
        )
