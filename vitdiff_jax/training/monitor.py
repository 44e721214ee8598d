"""Monitoring during training: samples, held-out losses, memorisation checks, evaluations."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.data import pipeline
from vitdiff_jax.evaluation import memorisation
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import evaluator as evaluator_lib
from vitdiff_jax.inference import loading, prompts, provenance, sampling
from vitdiff_jax.interop import sheets
from vitdiff_jax.interop.sheets import Sheet
from vitdiff_jax.runtime import logs, parallel
from vitdiff_jax.training import objective

TRAJECTORIES, FRAMES = 6, 8
"""Number of sampling trajectories shown at the end, and of frames in each."""


class Monitor:
    """Samples from and evaluates the EMAs at the intervals of config.log.

    Everything it needs is set up at the start, so that nothing missing can end a long run later.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: epath.Path,
        dataset: pipeline.Dataset,
        experiment: experiment_lib.Experiment,
        mesh: jax.sharding.Mesh,
    ):
        self.config, self.workdir, self.dataset, self.mesh = config, workdir, dataset, mesh
        self.ema = experiment_lib.sampled_ema(config)
        if self.ema not in experiment_lib.tracked_emas(config):  # available post hoc only
            self.ema = experiment_lib.tracked_emas(config)[0]
        model, process, distribution = (
            experiment.model,
            experiment.process,
            experiment.time_distribution,
        )
        levels = config.log.heldout_levels
        heldout = objective.make_heldout_step(
            model, process, distribution, levels, seed=config.seed
        )
        heldout = jax.jit(heldout, out_shardings=parallel.replicated(mesh))
        self.heldout_step = parallel.WithMesh(mesh, heldout)
        # Gather what ZeRO-1 shards once, not in each of a sampler's many network calls.
        gather = jax.jit(lambda params: params, out_shardings=parallel.replicated(mesh))
        self.replicated = gather if config.parallel.zero1 else lambda params: params
        self.heldout_times = np.asarray(
            distribution(objective.heldout_quantiles(levels), process.schedule)
        )
        guide, self.guide_params = loading.load_guide(experiment)
        self.experiment = experiment = dataclasses.replace(experiment, guide=guide)
        log, self.evaluator = config.log, None
        if log.sample_every or log.nearest_every or log.evaluate_every:
            self.sample_fn = sampling.make_sample_fn(experiment, config.sample, mesh)
            self.grid_cond = prompts.of_examples(dataset, log.images)
            self.grid_names = sampling.class_names(dataset.conditions, self.grid_cond)
        self.pictures = dataset
        if config.latent.factor > 1 and (log.nearest_every or log.evaluate_every):
            self.pictures = experiment_lib.pixel_dataset(config)
        if log.evaluate_every:
            self.evaluator = evaluator_lib.Evaluator(config, workdir, mesh, self.pictures)
            self.evaluator.check_unpaired()
            self.evaluator.check_shape(self.pictures.shape)
            self.evaluator.check_reference(self.pictures.shape)

    def after_step(
        self, step: int, emas: dict[str, Any], metrics: logs.Metrics, last: bool
    ) -> None:
        """Held-out losses, samples, memorisation and metrics, at their intervals and at the end."""
        began, log, params = time.monotonic(), self.config.log, emas[self.ema]
        if log.heldout_every and (last or step % log.heldout_every == 0):
            metrics.write(step, self._heldout(params))
        if log.sample_every and (last or step % log.sample_every == 0):
            images = self._sample(params, np.arange(log.images), self.grid_cond)
            about = {"step": step, "seed": 0}
            if "hint" in self.grid_cond:
                hint = self.grid_cond["hint"]
                sheet = sampling.restored_sheet(images, hint, self.dataset, **about)
            else:
                sheet = sampling.samples_sheet(images, self.grid_names, **about)
            self._picture(step, "samples", f"{step:08d}.png", sheet, metrics)
            if last and "hint" not in self.grid_cond:
                self._trajectory(step, params, metrics)
        if log.nearest_every and (last or step % log.nearest_every == 0):
            self._copies(step, params, metrics)
        if self.evaluator and (last or step % log.evaluate_every == 0):
            self._evaluate(step, emas, self.evaluator, metrics)
        metrics.exclude(time.monotonic() - began)

    def _evaluate(self, step, emas, evaluator: evaluator_lib.Evaluator, metrics: logs.Metrics):
        """The config's metrics of each EMA, on few images, and the time that they took."""
        began, count, values = time.monotonic(), self.config.log.evaluate_images, {}
        for name, params in emas.items():

            def sample(cond, n, seed, params=params):
                return self._sample(params, seed + np.arange(n), cond)

            batches = evaluator_lib.sampled(sample, self.config, self.pictures, count)
            measured = evaluator_lib.measure(evaluator.parts, count, batches, None, {})
            results = evaluator.results(measured)
            for metric, found in results.items():
                values |= {f"{metric}/ema{name}/{key}": value for key, value in found.items()}
                logs.say(f"step {step}, EMA {name}: {metric} {found['value']:.4f} ({count} images)")
            for line in evaluator_lib.outside(results):
                logs.say(f"warning: step {step}, EMA {name}: {line}")
        metrics.write(step, values | {"evaluation_seconds": time.monotonic() - began})

    def _sample(self, params, seeds, cond):
        return self.sample_fn((self.replicated(params), self.guide_params), seeds, cond)

    def _trajectory(self, step, params, metrics):
        """Sampling trajectories of the first images; compiled only at the end."""
        seeds = np.arange(min(TRAJECTORIES, self.config.log.images))
        cond = {name: value[: len(seeds)] for name, value in self.grid_cond.items()}
        try:
            sample_fn = sampling.make_sample_fn(
                self.experiment, self.config.sample, self.mesh, frames=FRAMES
            )
            images = sample_fn((self.replicated(params), self.guide_params), seeds, cond)
        except ConfigError as error:  # a user's sampler may not record its trajectory
            logs.say(f"no sampling trajectories: {error}")
            return
        about, names = {"step": step, "seed": 0}, self.grid_names[: len(seeds)]
        sheet = Sheet("trajectories", images, names=names, about=about)
        name = f"{step:08d}-n{len(seeds)}-frames{FRAMES}.png"
        self._picture(step, "frames", name, sheet, metrics)

    def _picture(self, step, name, file, sheet, metrics):
        metrics.image(step, name, sheet.pixels)
        if jax.process_index() == 0:
            path = self.workdir / "samples" / file
            path.parent.mkdir(exist_ok=True)
            made = provenance.record(
                "train", step, seed=0, n=len(sheet.images),
                settings=provenance.of_sampling(self.config),
            )  # fmt: skip
            sheets.write(path, sheet, provenance.chunk(made))

    def _copies(self, step, params, metrics):
        """Warn about samples that replicate training images, and show them."""
        images = self._sample(params, np.arange(self.config.log.images), self.grid_cond)
        found = memorisation.compare(images, self.pictures.train)
        metrics.write(step, {"memorised": float(found.memorised.mean())})
        if found.memorised.any():
            sheet = memorisation.sheet(images, found, self.grid_names, step=step, seed=0)
            self._picture(step, "nearest", f"{step:08d}-nearest.png", sheet, metrics)
            logs.say(
                f"warning: {memorisation.summary(found)}, see samples/{step:08d}-nearest.png; more"
                " training images, fewer steps or more dropout help"
            )

    def _heldout(self, params) -> dict[str, float]:
        """The held-out loss, on average and per noise level."""
        source, batch = self.dataset.heldout, self.config.train.batch
        count = min(self.config.log.heldout_images, len(source))
        batch = min(batch, count - count % jax.device_count())
        parts = pipeline.ordered_batches(
            source, range(count - count % batch), batch,
            process=jax.process_index(), processes=jax.process_count(),
        )  # fmt: skip
        losses = []
        for part in parts:
            losses.append(self.heldout_step(params, parallel.put_batch(self.mesh, part)))
        mean = np.mean(np.asarray(losses), 0)
        named = {f"heldout/t={t:.3f}": float(v) for t, v in zip(self.heldout_times, mean)}
        return {"heldout/loss": float(mean.mean())} | named
