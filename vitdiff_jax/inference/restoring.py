"""Repairing degraded pictures with a trained model, for `--mode=restore` and `model.restore`."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from vitdiff_jax import restoration
from vitdiff_jax.diffusion.tiles import Tiling, tiled
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment.build import Experiment, named
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference.sampling import batch_size, guided, one_ahead, start, whole_batches
from vitdiff_jax.inference.tasks import Case, one_picture, planes_of
from vitdiff_jax.interop.images import to_uint8
from vitdiff_jax.models.conditions import NULL
from vitdiff_jax.operators import Operator, Shape, spelling
from vitdiff_jax.operators.mask import Mask
from vitdiff_jax.restoration import sdedit
from vitdiff_jax.runtime import parallel

Cond = dict[str, np.ndarray]


class RestorationError(RuntimeError):
    """A repair that failed; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A method with its options, as "diffpir:zeta=0.5" spells it."""

    name: str
    options: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> "Method":
        """Raises ConfigError for names and options that do not exist."""
        with named("method: "):
            options = spelling.parse(text)
            name = options.pop("name")
            given = config_lib.options(restoration.module(name).restore)
            for key in options:
                if key not in given:
                    raise ValueError(f"{name} has no option {key!r}, only {', '.join(given)}")
                value, kind = options[key], type(given[key])
                if not isinstance(value, (int, float) if kind is float else kind):
                    raise ValueError(f"{name}: {key}: {value!r} is not like {given[key]!r}")
        return cls(name, options)

    @property
    def text(self) -> str:
        """As a person writes it."""
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}:{options}" if options else self.name

    def calls(self, steps: int) -> int:
        """Network calls for one image."""
        return restoration.module(self.name).calls(steps, **self.options)


class Program:
    """One way to repair, compiled for images of one shape; larger than the model's go in tiles."""

    def __init__(
        self, experiment: Experiment, mesh: jax.sharding.Mesh, shape: Shape, count: int,
        restore: Callable[..., jax.Array], times: np.ndarray,
    ):  # fmt: skip
        """count: how many images there will be in a call. restore: see `restoration`."""
        config = experiment.config
        self.experiment, self.mesh, self.shape = experiment, mesh, shape
        self.restore, self.times = restore, times
        with named("config.restore."):
            tile, share = experiment.shape[:2], config.restore.overlap
            if not 0 <= share <= 0.9:
                raise ValueError(f"overlap: {share} is not in [0, 0.9]")
            self.tiling = Tiling(shape[:2], tile, int(share * min(tile)))
        self.batch = batch_size(config.restore.batch, count, mesh)
        self.memory = 0  # bytes for each image while it is repaired, once something was
        self.seconds, self.done = 0.0, 0  # without compiling; images
        self._compiled: Any = None

    def _restore(self, weights, seeds, cond, y, operator, noise_std):
        """What is compiled: float32 [N, *shape]."""
        sharding = parallel.batch_sharding(self.mesh)
        seeds, cond, y = jax.lax.with_sharding_constraint((seeds, cond, y), sharding)
        schedule, config = self.experiment.process.schedule, self.experiment.config
        denoise_of = functools.partial(guided(self.experiment, config.sample), weights)
        denoise = tiled(denoise_of, self.tiling, cond, config.restore.tiles or None)
        x, keys = start(schedule, seeds, self.shape)
        return self.restore(
            denoise, schedule, self.times, x, keys, operator=operator, y=y, noise_std=noise_std
        )

    def __call__(
        self, weights: Any, seeds: np.ndarray, cond: Cond, y: np.ndarray, operator: Any,
        noise_std: float,
    ) -> np.ndarray:  # fmt: skip
        """Images float32 [N, *shape] from y [N, ...]; image i depends on seeds[i] and y[i] alone.

        weights: as of `draw.make_sample_fn`.
        The operators of all calls must be of one kind. RestorationError if a result is not finite.
        """
        inputs = whole_batches((seeds.astype(np.uint32), cond, y), self.batch)
        calls = [(weights, *part, operator, np.float32(noise_std)) for part in inputs]
        if self._compiled is None:
            jitted = jax.jit(self._restore, out_shardings=parallel.replicated(self.mesh))
            program = parallel.InMesh(self.mesh, jitted)
            with named("method: "):  # of values that an option cannot have
                lowered = program.lower(*calls[0])
            self._compiled = lowered.compile()
            analysis = self._compiled.memory_analysis()
            self.memory = analysis.temp_size_in_bytes * self.mesh.size // self.batch
        began = time.monotonic()
        parts = list(map(np.asarray, one_ahead(lambda call: self._compiled(*call), calls)))
        self.seconds += time.monotonic() - began
        self.done += len(y)
        images = np.concatenate(parts)[: len(y)]
        if not np.isfinite(images).all():
            raise RestorationError(
                "the result is not finite: the parameters are not, or an option of the method is"
                " too large"
            )
        return images

    def costs(self) -> dict[str, Any]:
        """What an image took: seconds without compiling, bytes beside the parameters."""
        return {
            "steps": len(self.times) - 1, "tiles": self.tiling.count,
            "seconds": round(self.seconds / max(self.done, 1), 3), "memory": self.memory,
        }  # fmt: skip


def program(
    experiment: Experiment, mesh: jax.sharding.Mesh, method: Method, operator: Operator,
    shape: Shape, count: int,
) -> Program:  # fmt: skip
    """Compile a method for so many images of this shape; ConfigError where it cannot serve."""
    with named("method: "):
        module = restoration.find(method.name, operator)
    if module.TRAITS.hint and "hint" not in experiment.conditions:
        raise ConfigError(f"method: {method.name} needs a model that was trained to restore")
    if module.TRAITS.gradient and "remat" in experiment.config.model:  # keep little in memory
        experiment = dataclasses.replace(experiment, model=experiment.model.clone(remat="full"))
    restore = functools.partial(module.restore, **method.options)
    return Program(experiment, mesh, shape, count, restore, times_of(experiment))


def times_of(experiment: Experiment) -> np.ndarray:
    """config.restore.steps on the grid of config.sample."""
    grid, options = config_lib.component(experiment.config, "sample.grid")
    with named("config.sample.grid."):
        return grid(experiment.process.schedule, experiment.config.restore.steps, **options)


def with_hint(experiment: Experiment, cond: Cond, hint: np.ndarray) -> Cond:
    """Conditions with the degraded images [n, H, W, C], if the model takes them."""
    return cond | {"hint": hint} if "hint" in experiment.conditions else cond


@dataclasses.dataclass(frozen=True)
class Restored:
    """What became of a degraded picture.

    samples: float32 [n, H, W, C] in [-1, 1]. degraded: what they were made of, as a picture of
    their size. about: how, for a person and for JSON. truth: the whole picture, where it is known.
    """

    samples: np.ndarray
    degraded: np.ndarray
    about: dict[str, Any]
    truth: np.ndarray | None = None

    @property
    def images(self) -> np.ndarray:
        """The samples as uint8 [n, H, W, C]."""
        return np.asarray(to_uint8(self.samples))

    @property
    def mean(self) -> np.ndarray:
        """Of the samples, [H, W, C]."""
        return self.samples.mean(0)

    @property
    def std(self) -> np.ndarray:
        """How far the samples differ at a pixel, [H, W, 1], in units of [-1, 1]."""
        return self.samples.std(0).mean(-1, keepdims=True)


class Restorer:
    """Repairs pictures with a trained model; what was compiled is kept for the next one like it."""

    def __init__(self, experiment: Experiment, weights: Any, mesh: jax.sharding.Mesh):
        self.experiment, self.weights, self.mesh = experiment, weights, mesh
        self._programs: dict[Any, Program] = {}

    def restore(self, case: Case, method: str | None, cond: Cond, seeds: np.ndarray) -> Restored:
        """A sample for each seed [n], with conditions [n]; method None: the recommended one."""
        operator, planes, n = case.operator, len(case.y), len(seeds)
        if method is None:
            method = restoration.recommended(operator, "hint" in self.experiment.conditions)
        chosen, y = Method.parse(method), np.repeat(case.y, n, 0)
        run = self._program(
            (chosen.text, y.shape, case.shape), operator,
            lambda: program(self.experiment, self.mesh, chosen, operator, case.shape, len(y)),
        )  # fmt: skip
        cond = {name: np.concatenate([value] * planes) for name, value in cond.items()}
        cond = with_hint(self.experiment, cond, np.repeat(case.images, n, 0))
        found = run(self.weights, np.tile(seeds, planes), cond, y, operator, case.noise_std)
        if isinstance(operator, Mask) and not case.noise_std:  # what is known stays, to the bit
            found = np.where(np.asarray(operator.known) > 0, y, found)
        found = found.reshape(planes, n, *case.shape)
        samples = np.stack([one_picture(found[:, i], case.channels) for i in range(n)])
        about = {
            "task": case.task, "method": chosen.text, "noise_std": case.noise_std,
            "network_calls": chosen.calls(self.experiment.config.restore.steps),
        }  # fmt: skip
        return Restored(samples, case.picture, about | run.costs())

    def _program(self, key: tuple, operator: Any, make: Callable[[], Program]) -> Program:
        """What `make` gives, kept for operators of one kind, whose arrays have the same shapes."""
        leaves, kind = jax.tree.flatten(operator)
        key = (*key, kind, *map(np.shape, leaves))
        if key not in self._programs:
            self._programs[key] = make()
        return self._programs[key]

    def edit(
        self, x: np.ndarray, strength: float, changed: np.ndarray | None, cond: Cond,
        seeds: np.ndarray,
    ) -> Restored:  # fmt: skip
        """SDEdit of a picture [H, W, 1 or 3] in [-1, 1], a sample for each seed [n].

        strength: the time t that it is noised to. changed: bool [H, W], where it may change.
        """
        if not 0 < strength < 1:
            raise ConfigError(f"strength: {strength} is not between 0 and 1")
        planes, n = planes_of(x, self.experiment.shape[2]), len(seeds)
        if len(planes) > 1:
            raise ConfigError("task: editing a colour picture needs a model of colour pictures")
        if changed is not None and changed.shape != x.shape[:2]:
            raise ConfigError(
                f"mask: has {changed.shape[1]}x{changed.shape[0]} pixels, the picture"
                f" {x.shape[1]}x{x.shape[0]}"
            )
        kept = np.float32(0) if changed is None else (~changed).astype(np.float32)[..., None]
        times = times_of(self.experiment)
        times = np.concatenate([[strength], times[times < strength]])
        y = np.repeat(planes, n, 0)
        run = self._program(
            ("edit", y.shape, strength), kept,
            lambda: Program(self.experiment, self.mesh, planes.shape[1:], n, _edit, times),
        )  # fmt: skip
        cond = with_hint(self.experiment, cond, np.full_like(y, NULL["hint"]))
        found = run(self.weights, seeds, cond, y, kept, 0.0)
        if changed is not None:
            found = np.where(kept > 0, y, found)
        samples = np.stack([one_picture(image[None], x.shape[2]) for image in found])
        about = {
            "task": "edit", "method": "sdedit", "strength": strength,
            "network_calls": len(times) - 1,
        }  # fmt: skip
        return Restored(samples, x, about | run.costs())


def _edit(denoise, schedule, times, x, keys, *, operator, y, noise_std):
    """SDEdit as a restorer; operator: what is kept."""
    return sdedit.edit(denoise, schedule, times, y, keys, kept=operator)
