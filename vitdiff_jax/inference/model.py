"""A trained model, loaded from a workdir by `vitdiff_jax.load`: samples and restores images."""

import dataclasses
import functools
import json
import os
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.data.pipeline import Dataset
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment import ema as ema_lib
from vitdiff_jax.experiment.build import Experiment, build, config_errors, sampled_ema
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import arrays, numbers, prompts, restoring, tasks
from vitdiff_jax.inference.prompts import Cond
from vitdiff_jax.inference.sampling import SampleFn, make_sample_fn
from vitdiff_jax.models.conditions import NULL
from vitdiff_jax.operators import masks
from vitdiff_jax.runtime import logs, parallel, paths
from vitdiff_jax.runtime.checkpoint import CheckpointError, Checkpoints

FIXED = ("grid", "ema", "ema_width", "guide_with")
"""Keys of config.sample that cannot be overridden once a model is loaded."""
LEAST = {"steps": 1, "batch": 1}
"""Of integers in config.sample."""
LICENCE, IMPORTED = "LICENCE.txt", "imported.json"
"""Files in a workdir of imported weights; the second only if they were not trained further."""
MAX_EMA_ERROR = 0.2
"""Maximum relative RMS error in the profile of a post-hoc EMA. Eight checkpoints with widths 0.05
and 0.10 give all widths from 0.03 to 0.2 to within 0.10.
"""


class TrainedModel:
    """A trained model, made by `load`.

    licence: of imported weights. guide_params: parameters of `experiment.guide`.
    """

    def __init__(
        self, experiment: Experiment, params: Any, step: int, mesh: jax.sharding.Mesh,
        licence: str = "", guide_params: Any = None,
    ):  # fmt: skip
        self.experiment, self.params, self.step, self.mesh = experiment, params, step, mesh
        self.licence, self.weights = licence, (params, guide_params)
        self._programs: dict[tuple, SampleFn] = {}  # by the overridden options
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
        """Sample n images, uint8 [n, H, W, C]; image i uses the seed `seed + i`.

        label, prompt, attributes: conditions, one for all or a list of n; see `prompts.encode`.
        hint: [n, H, W, C], uint8 or float in [-1, 1], degraded images, for a model trained with
        config.degradation; None: the null condition.
        options: overrides of config.sample, such as steps=25, guidance=2.0 or sampler="ddim" (with
        the defaults of that sampler); frames=8: frames of each sampling trajectory,
        [n, 8, H, W, C]. Raises ConfigError for what cannot be, such as seeds beyond 32 bits.
        """
        n = numbers.integer("n", n, 1)
        cond = prompts.encode(self.experiment.conditions, n, label, prompt, attributes)
        return self.sample_cond(cond | self._hint(hint, n), n, seed, **options)

    def _hint(self, hint: np.ndarray | None, n: int) -> Cond:
        """The condition of degraded images; None: the null condition."""
        known, shape = self.experiment.conditions, (n, *self.experiment.shape[:2])
        if "hint" not in known:
            if hint is not None:
                raise ConfigError("hint: the model was not trained with config.degradation")
            return {}
        shape = (*shape, known["hint"])
        if hint is None:
            return {"hint": np.full(shape, NULL["hint"], np.float32)}
        if np.shape(hint) != shape:
            raise ConfigError(f"hint: of shape {np.shape(hint)}, not {shape}")
        return {"hint": arrays.floats(np.asarray(hint), "hint")}

    def restore(
        self, image: Any, task: str | None = None, *, mask: Any = None, method: str | None = None,
        noise_std: float | None = None, degrade: bool = False, strength: float = 0.5,
        n: int = 1, seed: int = 0,
        label: prompts.Label | None = None, prompt: prompts.Texts | None = None,
        attributes: prompts.Texts | None = None,
    ) -> restoring.Restored:  # fmt: skip
        """Restore an image of any size: `.images` holds n samples, uint8 [n, H, W, C].

        image: uint8, uint16 or float in [-1, 1] (noise may leave it), [H, W] or [H, W, 1 or 3]; a
        PIL image or the path of a file, see `arrays.picture`. task: its degradation, see `tasks`;
        "edit" applies SDEdit from time `strength`; None: inpaint if there is a mask, else denoise.
        mask: an array [H, W], PIL image or path, True or white where pixels are missing (or to be
        edited), see `operators.masks`. method: of `restoration`; None: the recommended one.
        noise_std: in units of [-1, 1]; None: estimated. degrade: the image is clean, degrade it
        first.
        label, prompt, attributes: its conditions, as in `sample`; None: null conditions.
        """
        self.check_pixels()
        arrays.check_noise(noise_std)
        x = arrays.picture(image, 0.0 if degrade else noise_std)
        with config_errors("mask: "):
            file = isinstance(mask, (str, os.PathLike))
            missing = None if mask is None else masks.of(paths.local_copy(mask) if file else mask)
        task = task or ("denoise" if mask is None else "inpaint")
        if task == "inpaint" and mask is None:
            raise ConfigError("mask: required for the task inpaint; white where pixels are missing")
        n = numbers.integer("n", n, 1)
        cond = self.cond(n, label, prompt, attributes)
        seeds, channels = numbers.seeds("seed", seed, n), self.experiment.shape[2]
        seed = int(seeds[0])
        if task == "edit":
            other = {"method": method, "noise_std": noise_std, "degrade": degrade or None}
            if unused := [name for name, value in other.items() if value is not None]:
                raise ConfigError(f"{', '.join(unused)}: not used by the task edit; leave it out")
            return self._restorer.edit(x, strength, missing, cond, seeds)
        if not degrade:
            problem = tasks.from_measurement(x, channels, task, missing, noise_std, seed)
            return self._restorer.restore(problem, method, cond, seeds)
        planes = tasks.to_planes(x, channels)
        same = np.full(len(planes), seed)  # one noise for all colour channels
        problem = tasks.from_clean(planes, task, missing, noise_std, same, x.shape[2])
        found = self._restorer.restore(problem, method, cond, seeds)
        return dataclasses.replace(found, truth=x)

    @functools.cached_property
    def digest(self) -> str:
        """Of the parameters, also the guide's: samples of other ones are other samples."""
        found = 0
        for leaf in jax.tree.leaves(self.weights):
            flat = np.ascontiguousarray(leaf.addressable_data(0)).reshape(-1)
            found = zlib.crc32(flat.view(np.uint8).data, found)
        return f"{found:08x}"

    def on_local_devices(self) -> "TrainedModel":
        """The model on this process's devices alone, to be used independently of the others."""
        if jax.process_count() == 1:
            return self
        mesh = parallel.make_mesh(devices=jax.local_devices())

        def localised(tree):
            local = jax.tree.map(lambda a: a.addressable_data(0), tree)
            return jax.device_put(local, parallel.replicated(mesh))

        params, guide_params = map(localised, self.weights)
        return TrainedModel(self.experiment, params, self.step, mesh, self.licence, guide_params)

    def check_pixels(self) -> None:
        """Reject a latent model, which no restoration method supports yet."""
        if self.experiment.config.latent.factor > 1:
            raise ConfigError(
                "config.latent.factor: restoration needs a pixel-space model, not a latent one"
            )

    def cond(self, n: int, label=None, prompt=None, attributes=None) -> Cond:
        """Conditions of n images to be restored; None: null conditions."""
        known = {k: v for k, v in self.experiment.conditions.items() if k != "hint"}
        if label is None and "label" in known:
            label = -1
        cond = prompts.encode(known, n, label, prompt, attributes)
        self._check_null(cond)
        return cond

    def _check_null(self, cond: Cond) -> None:
        """Raise ConfigError for the null class, unless training has dropped labels."""
        learned = self.experiment.config.diffusion.label_dropout > 0
        if not learned and np.any(cond.get("label", 0) == -1):
            raise ConfigError(
                "label: required: this model was trained without a null class"
                " (config.diffusion.label_dropout=0)"
            )

    def sample_cond(
        self, cond: Cond, n: int, seed: int, *, latents: bool = False, frames: int = 0,
        **options: Any,
    ) -> np.ndarray:  # fmt: skip
        """`sample` with conditions given as arrays, as by `prompts.encode`.

        latents, frames: return these instead of images, see `sampling.make_sample_fn`.
        """
        self._check_null(cond)
        seeds = numbers.seeds("seed", seed, numbers.integer("n", n, 1))
        for name, value in cond.items():
            if len(value) != len(seeds):
                raise ConfigError(f"{name}: {len(value)} conditions for {len(seeds)} images")
        frames = numbers.integer("frames", frames)
        sample_fn = self._program(dict(latents=latents, frames=frames), self._plain(options))
        return sample_fn(self.weights, seeds, cond)

    def _plain(self, options: dict[str, Any]) -> dict[str, Any]:
        """Overrides of config.sample as plain Python values of the types there."""
        known, found = self.experiment.config.sample, {}
        for name, value in options.items():
            if name not in known or name in FIXED:
                raise ConfigError(f"{name}: not an option of sampling")
            if isinstance(known[name], int):
                found[name] = numbers.integer(name, value, LEAST.get(name))
            elif isinstance(known[name], float):
                found[name] = numbers.real(name, value)
            elif isinstance(value, str):
                found[name] = str(value)
            else:
                raise ConfigError(f"{name}: {value!r} is not a name")
        return found

    def _program(self, kind: dict[str, Any], options: dict[str, Any]) -> SampleFn:
        """The compiled sampler with these overrides of config.sample, cached."""
        key = (*kind.values(), *sorted(options.items()))
        if key not in self._programs:
            merged = self.experiment.config.sample.copy_and_resolve_references()
            for name, value in options.items():
                if name != "sampler":
                    merged[name] = value
                elif value != merged.sampler.name:
                    make = config_lib.find(config_lib.COMPONENTS["sample.sampler"], name, value)
                    merged.sampler = ConfigDict({"name": value} | config_lib.options(make))
            self._programs[key] = make_sample_fn(self.experiment, merged, self.mesh, **kind)
        return self._programs[key]


def load(
    workdir: paths.PathLike, config: ConfigDict | None = None, *,
    ema: float | None = None, ema_width: float | None = None,
) -> TrainedModel:  # fmt: skip
    """Load the trained model of a workdir: its latest intact checkpoint, the EMA of config.sample.

    config: overrides keys that may change after training, such as `sample`; the rest must match the
    workdir. None: as trained. ema: another one of config.train.ema. ema_width: an EMA of that
    relative width, see `experiment.ema`.
    """
    workdir = paths.resolve(workdir)
    stored = config_lib.read(workdir / "config.json") if config is None else config
    if config is not None:
        check_config(workdir, config)
    if not (workdir / "checkpoints").is_dir():
        raise CheckpointError(f"{workdir}: contains no checkpoints; train first with --mode=train")
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True, report=logs.say)
    step = checkpoints.newest()
    if step is None:
        raise CheckpointError(f"{workdir}: contains no checkpoints; train first with --mode=train")
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
        params = _posthoc_ema(checkpoints, step, name, stored.train.ema_widths, target)
    else:
        params = checkpoints.restore_emas(step, [name], target)[name]
    checkpoints.close()
    licence = workdir / LICENCE
    text = licence.read_text() if licence.is_file() else ""
    guide, guide_params = load_guide(experiment)
    experiment = dataclasses.replace(experiment, guide=guide)
    return TrainedModel(experiment, params, step, mesh, text, guide_params)


def load_guide(experiment: Experiment) -> tuple[Experiment | None, Any]:
    """The model of config.sample.guide_with and its parameters; ConfigError if incompatible."""
    path = experiment.config.sample.guide_with
    if not path:
        return None, None
    config: Any = config_lib.read(paths.resolve(path) / "config.json")
    config.sample.guide_with = None  # no guidance for the guide itself
    found = load(path, config)
    for what, one, other in (
        ("schedule", found.experiment.process.schedule, experiment.process.schedule),
        ("image size", found.experiment.shape, experiment.shape),
        ("conditions", *(_as_json(e.conditions) for e in (found.experiment, experiment))),
    ):
        if one != other:
            raise ConfigError(
                f"config.sample.guide_with: {path} cannot guide this model, its {what} differs:"
                f" {_short(one)} and {_short(other)}"
            )
    return found.experiment, found.params


def _posthoc_ema(
    checkpoints: Checkpoints, step: int, name: str, widths: tuple[float, ...], target: Any
) -> Any:
    """The EMA of a width at a step, synthesised from the stored EMAs of all checkpoints."""
    snapshots = [(n, w) for n in checkpoints.undamaged() if n <= step for w in widths]
    width = float(name.removeprefix("width"))
    weights, error = ema_lib.posthoc_weights(snapshots, step, width)
    if error > MAX_EMA_ERROR:
        raise ConfigError(
            f"config.sample.ema_width: {width} cannot be synthesised from EMAs of widths {widths}"
            f" in {len(snapshots) // len(widths)} checkpoints: the error is {error:.0%}; keep more"
            " checkpoints with config.checkpoint.keep_every, or choose another width"
        )
    total = jax.tree.map(lambda a: np.zeros(a.shape, np.float64), target)
    names = [ema_lib.width_name(w) for w in widths]
    for n, of_step in zip(dict(snapshots), weights.reshape(-1, len(widths))):
        found = checkpoints.restore_emas(n, names, target)
        for name, weight in zip(names, of_step):
            total = jax.tree.map(lambda sum, a, w=weight: sum + w * a, total, found[name])
    return jax.tree.map(lambda a, t: jax.device_put(a.astype(t.dtype), t.sharding), total, target)


def meta_of(dataset: Dataset) -> dict[str, Any]:
    """The metadata of a checkpoint: shape and conditions of the dataset, as JSON."""
    return _as_json({"shape": dataset.shape, "conditions": dict(dataset.conditions)})


def check_data(meta: dict[str, Any], dataset: Dataset) -> None:
    """Reject a dataset whose image shape or conditions differ from those of training."""
    trained = _as_json({**meta, "conditions": dict(meta["conditions"])})
    for name, value in meta_of(dataset).items():
        if value != trained[name]:
            raise ConfigError(
                f"config.data: has the {name} {_short(value)}, but the model was trained with"
                f" {_short(trained[name])}; use the original dataset or another --workdir"
            )


def _as_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """As read back from a JSON file, in which there are no tuples."""
    return json.loads(json.dumps(dict(facts)))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 200 else f"{text[:200]}..."


def check_config(workdir: epath.Path, config: ConfigDict) -> None:
    """Reject a config that is incompatible with the one in the workdir, if there is one."""
    path = workdir / "config.json"
    if not path.exists():
        return
    lines = config_lib.differences(config_lib.read(path, trusted=config), config)
    if (workdir / IMPORTED).exists():  # trained on unknown data; see `check_data`
        lines = [line for line in lines if not line.startswith("data.")]
    if lines:
        raise ConfigError(
            f"{workdir} was trained with another config ({'; '.join(lines)});"
            " use the original values or another --workdir"
        )
