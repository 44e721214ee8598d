"""Image restoration with a trained model, for `--mode=restore` and `model.restore`."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from vitdiff_jax import restoration
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment import rules
from vitdiff_jax.experiment.build import Experiment, config_errors
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import numbers
from vitdiff_jax.inference.progress import Meter, Progress
from vitdiff_jax.inference.sampling import dispatch_ahead, guided, initial_noise, padded_batches
from vitdiff_jax.inference.tasks import InverseProblem, from_planes, to_planes
from vitdiff_jax.inference.tile_plan import excess, plan, tiling_of
from vitdiff_jax.interop.images import to_uint8
from vitdiff_jax.models.conditions import NULL
from vitdiff_jax.operators import Operator, Shape, masks, parsing
from vitdiff_jax.operators.mask import Mask
from vitdiff_jax.restoration import sdedit
from vitdiff_jax.runtime import logs, parallel
from vitdiff_jax.samplers import needs_final_denoise

Cond = dict[str, np.ndarray]
PACED = 0.02
"""The share of the network calls that time the others: the first ones are slower."""


class RestorationError(RuntimeError):
    """Restoration that failed; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A restoration method and its options, written as "diffpir:zeta=0.5"."""

    name: str
    options: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> "Method":
        """Parse a method; ConfigError for unknown names and options."""
        with config_errors("method: "):
            options = parsing.parse(text)
            name = options.pop("name")
            given = config_lib.options(restoration.module(name).restore)
            for key in options:
                if key not in given:
                    raise ValueError(f"{name} has no option {key!r}; available: {', '.join(given)}")
                value, kind = options[key], type(given[key])
                if not isinstance(value, (int, float) if kind is float else kind):
                    raise ValueError(f"{name}: {key}: {value!r} is not of type {kind.__name__}")
        rules.check_method(name, options)
        return cls(name, options)

    @property
    def text(self) -> str:
        """The method as text, inverse of `parse`."""
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}:{options}" if options else self.name

    def nfe(self, steps: int, final: bool) -> int:
        """Network evaluations per image. final: whether the last step is the final denoise."""
        return restoration.module(self.name).nfe(steps, final=final, **self.options)

    @property
    def gradients(self) -> int:
        """Gradients of the network per evaluation."""
        module = restoration.module(self.name)
        if hasattr(module, "gradients"):
            return module.gradients(**self.options)
        return int(module.TRAITS.gradient)


class Program:
    """A restoration method, compiled for one image shape; larger images are tiled."""

    def __init__(
        self, experiment: Experiment, mesh: jax.sharding.Mesh, shape: Shape, count: int,
        restore: Callable[..., jax.Array], times: np.ndarray, nfe: Callable[[int, bool], int],
        gradients: int = 0,
    ):  # fmt: skip
        """count: number of images per call. restore, times: see `restoration`.

        nfe: see `Method`. gradients: of each of these network calls.
        """
        if experiment.config.train.frechet.spaces:
            raise ConfigError(
                "config.train.frechet: a model that was trained to make images in one call is no"
                " denoiser any more; restore with the one it began with,"
                f" {experiment.config.train.init_from}"
            )
        self.experiment, self.mesh, self.shape, self.count = experiment, mesh, shape, count
        self.restore, self.times, self.gradients = restore, times, gradients
        final = needs_final_denoise(experiment.process.schedule, times)
        self.steps = len(times) - 1 + final
        self.calls = nfe(self.steps, final)
        self.tiling, self.meter = tiling_of(experiment, shape), Meter()
        self.memory = 0  # bytes of temporaries per image, known once compiled
        self.seconds, self.done = 0.0, 0  # run time without compilation; number of images
        self._compiled: Any = None
        self._plan: Any = None

    def _restore(self, weights, seeds, cond, y, operator, noise_std):
        """The compiled function; returns float32 [N, *shape]."""
        sharding = parallel.batch_sharding(self.mesh)
        seeds, cond, y = jax.lax.with_sharding_constraint((seeds, cond, y), sharding)
        schedule, config = self.experiment.process.schedule, self.experiment.config
        denoise_of = functools.partial(guided(self.experiment, config.sample), weights)
        x, keys = initial_noise(schedule, seeds, self.shape)
        denoise = self._plan.denoiser(denoise_of, keys, cond, self.meter.tick)
        return self.restore(
            denoise, schedule, self.times, x, keys, operator=operator, y=y, noise_std=noise_std
        )

    def __call__(
        self, weights: Any, seeds: np.ndarray, cond: Cond, y: np.ndarray, operator: Any,
        noise_std: float, progress: Progress | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Restore images float32 [N, *shape] from y [N, ...]; image i depends on seeds[i] and y[i].

        weights: as in `sampling.make_sample_fn`. The operators of all calls must be of one kind.
        progress: see `model.restore`. Raises RestorationError if a result is not finite, or if
        there is too little memory.
        """
        if self._plan is None:
            about = (self.count, self.calls, self.steps, self.gradients, weights, cond)
            self._plan = plan(self.experiment, self.mesh, self.tiling, *about)
        inputs = padded_batches((seeds.astype(np.uint32), cond, y), self._plan.batch)
        calls = [(weights, *part, operator, np.float32(noise_std)) for part in inputs]
        if self._compiled is None:
            self._compile(calls[0])
        total = len(calls) * self._plan.total
        report = self._reporter(total, progress)
        results = dispatch_ahead(lambda call: self._compiled(*call), calls)
        began = time.monotonic()
        parts = self.meter.watch(lambda: list(map(np.asarray, results)), report)
        report(total)
        self.seconds += time.monotonic() - began
        self.done += len(y)
        images = np.concatenate(parts)[: len(y)]
        if not np.isfinite(images).all():
            raise RestorationError(
                "the restored image is not finite: the parameters are not, or an option of the"
                " method is too large"
            )
        return images

    def _compile(self, call: tuple) -> None:
        """Compile for such a call, if it fits into memory."""
        jitted = jax.jit(self._restore, out_shardings=parallel.replicated(self.mesh))
        program = parallel.WithMesh(self.mesh, jitted)
        with config_errors("method: "):  # invalid values of options
            lowered = program.lower(*call)
        compiled = self.meter.watch(lowered.compile)
        analysis = compiled.memory_analysis()
        self.memory = analysis.temp_size_in_bytes * self.mesh.size // self._plan.batch
        taken = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
        device = self.mesh.local_devices[0]
        if device.platform == "cpu":  # all of them share the machine's memory
            taken *= len(self.mesh.local_devices)
        if why := excess(taken, device, self.shape):
            raise RestorationError(why)
        self._compiled = compiled

    def _reporter(self, total: int, progress: Progress | None) -> Callable[[int], None]:
        """Report(network calls done); first a line that says what the work is, if it is large."""
        told = not self._plan.observed

        def report(done: int) -> None:
            nonlocal told
            if progress is None:
                return
            if done > max(1, total * PACED) and not told:
                told, seconds = True, total * self.meter.pace(done)
                taken = self.memory * self._plan.batch
                logs.say(self._plan.text(taken, seconds))
            progress(min(done, total), total)

        return report

    def costs(self) -> dict[str, Any]:
        """Cost per image: seconds without compilation, bytes besides the parameters."""
        return {
            "network_calls": self.calls, "steps": self.steps, "tiles": self.tiling.count,
            "seconds": round(self.seconds / max(self.done, 1), 3), "memory": self.memory,
        }  # fmt: skip


def program(
    experiment: Experiment, mesh: jax.sharding.Mesh, method: Method, operator: Operator,
    shape: Shape, count: int,
) -> Program:  # fmt: skip
    """The program of a method for `count` images; ConfigError if it does not apply."""
    with config_errors("method: "):
        module = restoration.find(method.name, operator)
    if module.TRAITS.hint and "hint" not in experiment.conditions:
        raise ConfigError(f"method: {method.name} needs a model trained with config.degradation")
    if module.TRAITS.gradient and "remat" in experiment.config.model:  # to save memory
        experiment = dataclasses.replace(experiment, model=experiment.model.clone(remat="full"))
    restore = functools.partial(module.restore, **method.options)
    how = times_of(experiment), method.nfe, method.gradients
    return Program(experiment, mesh, shape, count, restore, *how)


def times_of(experiment: Experiment) -> np.ndarray:
    """The times of config.restore.steps on the grid of config.sample."""
    grid, options = config_lib.component(experiment.config, "sample.grid")
    with config_errors("config.sample.grid."):
        return grid(experiment.process.schedule, experiment.config.restore.steps, **options)


def with_hint(experiment: Experiment, cond: Cond, hint: np.ndarray) -> Cond:
    """Add the degraded images [n, H, W, C] to the conditions, if the model takes a hint."""
    return cond | {"hint": hint} if "hint" in experiment.conditions else cond


@dataclasses.dataclass(frozen=True)
class Restored:
    """The restoration of an image.

    samples: float32 [n, H, W, C] in [-1, 1]. degraded: the measurement, as an image of their size.
    about: method, settings and costs, for JSON. truth: the clean image, if known. mask: bool [H, W]
    of the given picture, the scratches found by mask="auto"; None: nothing was looked for.
    """

    samples: np.ndarray
    degraded: np.ndarray
    about: dict[str, Any]
    truth: np.ndarray | None = None
    mask: np.ndarray | None = None

    @property
    def images(self) -> np.ndarray:
        """The samples as uint8 [n, H, W, C]."""
        return np.asarray(to_uint8(self.samples))

    @property
    def mean(self) -> np.ndarray:
        """Mean of the samples, [H, W, C]."""
        return self.samples.mean(0)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of the samples per pixel, [H, W, 1], in units of [-1, 1]."""
        return self.samples.std(0).mean(-1, keepdims=True)


class Restorer:
    """Restores images with a trained model; compiled programs are cached."""

    def __init__(self, experiment: Experiment, weights: Any, mesh: jax.sharding.Mesh):
        self.experiment, self.weights, self.mesh = experiment, weights, mesh
        self._programs: dict[Any, Program] = {}

    def restore(
        self, problem: InverseProblem, method: str | None, cond: Cond, seeds: np.ndarray,
        progress: Progress | None = None,
    ) -> Restored:  # fmt: skip
        """One sample per seed [n], with conditions [n]; method None: the recommended one."""
        operator, planes, n = problem.operator, len(problem.y), len(seeds)
        if method is None:
            method = restoration.recommended(operator, "hint" in self.experiment.conditions)
        chosen, y = Method.parse(method), np.repeat(problem.y, n, 0)
        run = self._program(
            (chosen.text, y.shape, problem.shape), operator,
            lambda: program(self.experiment, self.mesh, chosen, operator, problem.shape, len(y)),
        )  # fmt: skip
        cond = {name: np.concatenate([value] * planes) for name, value in cond.items()}
        cond = with_hint(self.experiment, cond, np.repeat(problem.images, n, 0))
        found = run(
            self.weights, np.tile(seeds, planes), cond, y, operator, problem.noise_std, progress
        )
        if isinstance(operator, Mask) and not problem.noise_std:  # known pixels stay bit-exact
            found = np.where(np.asarray(operator.known) > 0, y, found)
        found = found.reshape(planes, n, *problem.shape)
        samples = np.stack([from_planes(found[:, i], problem.channels) for i in range(n)])
        about = {
            "task": problem.task, "method": chosen.text, "noise_std": problem.noise_std,
        }  # fmt: skip
        return Restored(samples, problem.picture, about | run.costs())

    def _program(self, key: tuple, operator: Any, make: Callable[[], Program]) -> Program:
        """The result of `make`, cached by key and by type and array shapes of the operator."""
        leaves, kind = jax.tree.flatten(operator)
        key = (*key, kind, *map(np.shape, leaves))
        if key not in self._programs:
            self._programs[key] = make()
        return self._programs[key]

    def edit(
        self, x: np.ndarray, strength: float, changed: np.ndarray | None, cond: Cond,
        seeds: np.ndarray, progress: Progress | None = None,
    ) -> Restored:  # fmt: skip
        """SDEdit of an image [H, W, 1 or 3] in [-1, 1], one sample per seed [n].

        strength: the time t to which it is noised. changed: bool [H, W], the pixels to edit.
        """
        strength = numbers.real("strength", strength)
        if not 0 < strength < 1:
            raise ConfigError(f"strength: {strength} is not between 0 and 1")
        planes, n = to_planes(x, self.experiment.shape[2]), len(seeds)
        if len(planes) > 1:
            raise ConfigError("task: editing a colour image needs a model of colour images")
        if changed is not None:
            with config_errors("mask: "):
                masks.fitted(changed, x.shape)
        kept = np.float32(0) if changed is None else (~changed).astype(np.float32)[..., None]
        times = times_of(self.experiment)
        times = np.concatenate([[strength], times[times < strength]])
        y = np.repeat(planes, n, 0)
        run = self._program(
            ("edit", y.shape, strength), kept,
            lambda: Program(
                self.experiment, self.mesh, planes.shape[1:], n, _edit, times,
                lambda steps, final: steps,
            ),
        )  # fmt: skip
        cond = with_hint(self.experiment, cond, np.full_like(y, NULL["hint"]))
        found = run(self.weights, seeds, cond, y, kept, 0.0, progress)
        if changed is not None:
            found = np.where(kept > 0, y, found)
        samples = np.stack([from_planes(image[None], x.shape[2]) for image in found])
        about = {"task": "edit", "method": "sdedit", "strength": strength}
        return Restored(samples, x, about | run.costs())


def _edit(denoise, schedule, times, x, keys, *, operator, y, noise_std):
    """SDEdit with the signature of a restorer; operator: the mask of kept pixels."""
    return sdedit.edit(denoise, schedule, times, y, keys, kept=operator)
