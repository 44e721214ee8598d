"""A trained model, as `vitdiff_jax.load` returns it: samples and restores images."""

import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment import rules
from vitdiff_jax.experiment.build import Experiment
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import arrays, colour, compression, numbers, prompts, restoring, tasks
from vitdiff_jax.inference.progress import Progress
from vitdiff_jax.inference.prompts import Cond
from vitdiff_jax.inference.sampling import SampleFn, make_sample_fn
from vitdiff_jax.models.conditions import NULL
from vitdiff_jax.runtime import parallel

FIXED = ("grid", "ema", "ema_width", "guide_with")
"""Keys of config.sample that cannot be overridden once a model is loaded."""


class TrainedModel:
    """A trained model, made by `loading.load`.

    licence: of weights that were not trained here. guide_params: parameters of `experiment.guide`.
    origin: of a model of the package its name and SHA-256, for `provenance`.
    """

    def __init__(
        self, experiment: Experiment, params: Any, step: int, mesh: jax.sharding.Mesh,
        licence: str = "", guide_params: Any = None, origin: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        self.experiment, self.params, self.step, self.mesh = experiment, params, step, mesh
        self.licence, self.weights, self.origin = licence, (params, guide_params), origin or {}
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
        n = numbers.integer("n", n, rules.ONE)
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
        attributes: prompts.Texts | None = None, progress: Progress | None = None,
    ) -> restoring.Restored:  # fmt: skip
        """Restore an image of any size: `.images` holds n samples, uint8 [n, H, W, C].

        image: uint8, uint16 or float in [-1, 1] (noise may leave it), [H, W] or [H, W, 1 or 3]; a
        PIL image or the path of a file, see `arrays.picture`. task: its degradation, see `tasks`;
        "edit" applies SDEdit from time `strength`; None: inpaint if there is a mask, else denoise.
        mask: an array [H, W], PIL image or path, True or white where pixels are missing (or to be
        edited), see `operators.masks`; "auto": on scratches, which are found and come back as
        `.mask`. method: of `restoration`; None: the recommended one.
        noise_std: in units of [-1, 1]; None: estimated. degrade: the image is clean, degrade it
        first.
        label, prompt, attributes: its conditions, as in `sample`; None: null conditions.
        progress: called with (done, total), of network calls, some ten times a second; what it
        raises ends the work, as Ctrl-C does, within a call. For an image in tiles a line says
        first what the work is. Raises RestorationError for an image that does not fit into memory.
        """
        self.check_pixels()
        noise_std = arrays.check_noise(noise_std)
        x = arrays.picture(image, 0.0 if degrade else noise_std)
        auto = isinstance(mask, str) and mask == tasks.AUTO
        if task is None:
            task = "denoise" if mask is None else "inpaint"
        if task == "inpaint" and mask is None:
            raise ConfigError("mask: required for the task inpaint; white where pixels are missing")
        if degrade and auto:
            raise ConfigError(
                "mask: auto finds scratches in a picture as it is, not in a clean one"
            )
        task = task if degrade else compression.resolved(task, image)
        missing = tasks.missing(mask, x, task)
        n = numbers.integer("n", n, rules.ONE)
        cond = self.cond(n, label, prompt, attributes)
        seeds, channels = numbers.seeds("seed", seed, n), self.experiment.shape[2]
        seed = int(seeds[0])
        if task == "edit":
            other = {"method": method, "noise_std": noise_std, "degrade": degrade or None}
            if unused := [name for name, value in other.items() if value is not None]:
                raise ConfigError(f"{', '.join(unused)}: not used by the task edit; leave it out")
            found = self._restorer.edit(x, strength, missing, cond, seeds, progress)
            return dataclasses.replace(found, mask=missing if auto else None)
        if not degrade:
            problem = tasks.from_measurement(x, channels, task, missing, noise_std, seed)
            found = self._restored(problem, method, cond, seeds, progress)
            return dataclasses.replace(found, mask=missing if auto else None)
        planes = tasks.to_planes(x, channels)
        same = np.full(len(planes), seed)  # one noise for all colour channels
        problem = tasks.from_clean(planes, task, missing, noise_std, same, x.shape[2])
        found = self._restored(problem, method, cond, seeds, progress)
        return dataclasses.replace(found, truth=x)

    def _restored(self, problem, method, cond, seeds, progress) -> restoring.Restored:
        """Colours of what is larger than the model's images come from a smaller picture."""
        factor = colour.factor_of(problem, self.experiment.shape)
        if factor == 1:
            return self._restorer.restore(problem, method, cond, seeds, progress)
        return colour.restore(self._restorer, problem, method, cond, seeds, factor, progress)

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
        return TrainedModel(
            self.experiment, params, self.step, mesh, self.licence, guide_params, self.origin
        )

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
        seeds = numbers.seeds("seed", seed, numbers.integer("n", n, rules.ONE))
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
            known_range = rules.RANGES.get(f"sample.{name}", rules.REAL)
            if isinstance(known[name], int):
                found[name] = numbers.integer(name, value, known_range)
            elif isinstance(known[name], float):
                found[name] = numbers.real(name, value, known_range)
            elif isinstance(value, str):
                found[name] = str(value)
            else:
                raise ConfigError(f"{name}: {value!r} is not a name")
        rules.check_interval({**known, **found})
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
