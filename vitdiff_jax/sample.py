"""Drawing images from a trained model: `--mode=sample`, and `vitdiff_jax.load` for Python.

Image i is drawn from the seed `seed + i` alone: the same seed gives the same image (to rounding)
in any batch, on any number of devices, and shows how one image changes over training.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vitdiff_jax import config as config_lib
from vitdiff_jax import logs, parallel
from vitdiff_jax.checkpoint import CheckpointError, Checkpoints
from vitdiff_jax.config import ConfigError
from vitdiff_jax.diffusion.process import guide
from vitdiff_jax.experiment import Experiment, build, named, sampled_ema
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.train_step import null_cond

Draw = Callable[[Any, np.ndarray, np.ndarray], np.ndarray]


def make_draw(experiment: Experiment, options: ConfigDict, mesh: jax.sharding.Mesh) -> Draw:
    """Compile config.sample into (params, seeds [N], labels [N]) -> uint8 images [N, H, W, C].

    One call of the compiled loop draws `options.batch` images, cut over all devices.
    """
    sampler, sampler_options = config_lib.component(experiment.config, "sample.sampler")
    grid, grid_options = config_lib.component(experiment.config, "sample.grid")
    schedule = experiment.process.schedule
    with named("config.sample."):
        times = grid(schedule, options.steps, **grid_options)
    sharding = parallel.batch_sharding(mesh)

    @functools.partial(jax.jit, out_shardings=parallel.replicated(mesh))
    def draw(params, seeds, labels):
        seeds, labels = jax.lax.with_sharding_constraint((seeds, labels), sharding)
        keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(seeds)
        noise = jax.vmap(lambda key: jax.random.normal(key, experiment.shape))(keys[:, 0])
        null = null_cond(experiment.model.classes, len(seeds))
        cond = {"label": labels} if null else {}
        denoise = guide(
            experiment.denoiser(params, cond),
            experiment.denoiser(params, null),
            options.guidance,
            options.guidance_low,
            options.guidance_high,
        )
        _, sigma = schedule.alpha_sigma(jnp.ones(()))
        x = sampler(denoise, schedule, times, sigma * noise, keys[:, 1], **sampler_options)
        return image_lib.to_uint8(x)

    def draw_all(params, seeds, labels):
        devices = mesh.size
        batch = min(options.batch, len(seeds))
        batch = -(-batch // devices) * devices
        padding = -len(seeds) % batch
        seeds = np.pad(seeds.astype(np.uint32), (0, padding))
        labels = np.pad(labels.astype(np.int32), (0, padding))
        parts = [
            np.asarray(draw(params, seeds[i : i + batch], labels[i : i + batch]))
            for i in range(0, len(seeds), batch)
        ]
        return np.concatenate(parts)[: len(seeds) - padding]

    return draw_all


def balanced_labels(classes: int | None, n: int) -> np.ndarray:
    """Labels [n] that go through the classes in turn; -1 where there are none."""
    return np.arange(n) % classes if classes else np.full(n, -1)


class Trained:
    """A trained model: `sample` draws images. Made by `load`."""

    def __init__(self, experiment: Experiment, params: Any, step: int, mesh: jax.sharding.Mesh):
        self.experiment, self.params, self.step, self.mesh = experiment, params, step, mesh
        self._programs: dict[tuple, Draw] = {}

    def sample(
        self,
        label: int | Sequence[int] | np.ndarray | None = None,
        n: int = 16,
        seed: int = 0,
        **options: Any,
    ) -> np.ndarray:
        """Draw n images, uint8 [n, H, W, C]; image i has the seed `seed + i`.

        label: one class for all, a class for each, -1 for no class; None: the classes in turn.
        options: other values for keys of config.sample, such as steps=25 or guidance=2.0.
        """
        labels = balanced_labels(self.experiment.model.classes, n)
        if label is not None:
            labels = np.broadcast_to(np.asarray(label, np.int32), n)
            classes = self.experiment.model.classes or 0
            if labels.min() < -1 or labels.max() >= classes:
                raise ConfigError(f"label: {label} is not in -1 (none) to {classes - 1}")
        seeds = seed + np.arange(n, dtype=np.int64)
        return self._program(options)(self.params, seeds, labels)

    def _program(self, options: dict[str, Any]) -> Draw:
        """The compiled sampler with other values of config.sample, kept for the next call."""
        key = tuple(sorted(options.items()))
        if key not in self._programs:
            merged = self.experiment.config.sample.copy_and_resolve_references()
            for name, value in options.items():
                if name not in merged or name in ("sampler", "grid", "ema"):
                    raise ConfigError(f"{name}: not an option that sampling takes")
                merged[name] = value
            self._programs[key] = make_draw(self.experiment, merged, self.mesh)
        return self._programs[key]


def load(workdir: str | pathlib.Path, config: ConfigDict | None = None) -> Trained:
    """The trained model of a workdir: its newest undamaged checkpoint, the EMA of config.sample.

    config: its `sample` section counts; the rest must be that of the workdir. None: as trained.
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
    names = meta["class_names"]
    experiment = build(stored, tuple(meta["shape"]), None if names is None else tuple(names))
    mesh = parallel.make_mesh()
    sharding = parallel.replicated(mesh)
    target = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
        experiment.param_shapes(),
    )
    params = checkpoints.restore_ema(step, sampled_ema(stored), target)
    checkpoints.close()
    return Trained(experiment, params, step, mesh)


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
    label: int | None = None,
    seed: int = 0,
    npz: bool = False,
) -> None:
    """`--mode=sample`: n images into samples/*.png, with --npz also as arrays (ADM's layout)."""
    if n < 1:
        raise ConfigError(f"--n: {n} is less than 1")
    model = load(workdir, config)
    images = model.sample(label, n, seed)
    which = "" if label is None else f"-label{label}"
    path = workdir / "samples" / f"step{model.step}{which}-seed{seed}-n{n}.png"
    if jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        classes = model.experiment.model.classes if label is None else None
        image_lib.save_png(path, picture(images, classes))
        if npz:
            image_lib.save_npz(path.with_suffix(".npz"), images)
    logs.say(f"{n} images in {path}")
