"""What a run shows as it goes: samples, held-out losses, copies of training images, evaluations."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.data import pipeline
from vitdiff_jax.evaluation import memorised
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import evaluator as evaluator_lib
from vitdiff_jax.inference import model as model_lib
from vitdiff_jax.inference import prompts, sampling
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.runtime import logs, parallel
from vitdiff_jax.training import step as step_lib

TRAJECTORIES, FRAMES = 6, 8
"""Images whose way from noise is shown at the end, and pictures of it."""


class Monitor:
    """Looks at the averages of the parameters at the intervals of config.log.

    All that it needs is made at once, so that what is missing does not end a long run later.
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
        if self.ema not in experiment_lib.tracked_emas(config):  # that can be made afterwards only
            self.ema = experiment_lib.tracked_emas(config)[0]
        model, process, distribution = (
            experiment.model,
            experiment.process,
            experiment.time_distribution,
        )
        levels = config.log.heldout_levels
        heldout = step_lib.make_heldout_step(model, process, distribution, levels, seed=config.seed)
        heldout = jax.jit(heldout, out_shardings=parallel.replicated(mesh))
        self.heldout_step = parallel.InMesh(mesh, heldout)
        # What ZeRO-1 keeps cut is put together once, not in each of a sampler's many calls.
        whole = jax.jit(lambda params: params, out_shardings=parallel.replicated(mesh))
        self.replicated = whole if config.parallel.zero1 else lambda params: params
        self.heldout_times = np.asarray(
            distribution(step_lib.heldout_quantiles(levels), process.schedule)
        )
        guide, self.guide_params = model_lib.guide_of(experiment)
        self.experiment = experiment = dataclasses.replace(experiment, guide=guide)
        log, self.evaluator = config.log, None
        if log.sample_every or log.nearest_every or log.evaluate_every:
            self.sample_fn = sampling.make_sample_fn(experiment, config.sample, mesh)
            self.grid_cond = prompts.of_examples(dataset, log.images)
        self.pictures = dataset
        if config.latent.factor > 1 and (log.nearest_every or log.evaluate_every):
            self.pictures = experiment_lib.pictures(config)
        if log.evaluate_every:
            self.evaluator = evaluator_lib.Evaluator(config, workdir, mesh, self.pictures)

    def look(self, step: int, emas: dict[str, Any], metrics: logs.Metrics, last: bool) -> None:
        """Held-out losses, a grid of samples, copies, at their intervals and at the end."""
        began, log, params = time.monotonic(), self.config.log, emas[self.ema]
        if log.heldout_every and (last or step % log.heldout_every == 0):
            metrics.write(step, self._heldout(params))
        if log.sample_every and (last or step % log.sample_every == 0):
            images = self._sample(params, np.arange(log.images), self.grid_cond)
            if "hint" in self.grid_cond:
                sheet = sampling.beside(images, self.grid_cond["hint"], self.dataset)
            else:
                sheet = sampling.picture(images, self.dataset.classes)
            self._picture(step, "samples", f"{step:08d}.png", sheet, metrics)
            if last and "hint" not in self.grid_cond:
                self._trajectory(step, params, metrics)
        if log.nearest_every and (last or step % log.nearest_every == 0):
            self._copies(step, params, metrics)
        if self.evaluator and (last or step % log.evaluate_every == 0):
            self._evaluate(step, emas, self.evaluator, metrics)
        metrics.elsewhere(time.monotonic() - began)

    def _evaluate(self, step, emas, evaluator: evaluator_lib.Evaluator, metrics: logs.Metrics):
        """The config's metrics of each EMA, on few images, and the seconds that they took."""
        began, count, values = time.monotonic(), self.config.log.evaluate_images, {}
        for name, params in emas.items():

            def sample(cond, n, seed, params=params):
                return self._sample(params, seed + np.arange(n), cond)

            batches = evaluator_lib.sampled(sample, self.config, self.pictures, count)
            measured = evaluator_lib.measure(evaluator.parts, count, batches, None, {})
            for metric, found in evaluator.results(measured).items():
                values |= {f"{metric}/ema{name}/{key}": value for key, value in found.items()}
                logs.say(f"step {step}, ema {name}: {metric} {found['value']:.4f}, {count} images")
        metrics.write(step, values | {"evaluation_seconds": time.monotonic() - began})

    def _sample(self, params, seeds, cond):
        return self.sample_fn((self.replicated(params), self.guide_params), seeds, cond)

    def _trajectory(self, step, params, metrics):
        """The first images' way from noise, compiled at the end only."""
        seeds = np.arange(min(TRAJECTORIES, self.config.log.images))
        cond = {name: value[: len(seeds)] for name, value in self.grid_cond.items()}
        try:
            sample_fn = sampling.make_sample_fn(
                self.experiment, self.config.sample, self.mesh, frames=FRAMES
            )
            images = sample_fn((self.replicated(params), self.guide_params), seeds, cond)
        except ConfigError as error:  # a sampler from elsewhere need not show its way
            logs.say(f"no picture of the way from noise: {error}")
            return
        sheet = image_lib.grid(images.reshape(-1, *images.shape[2:]), FRAMES)
        name = f"{step:08d}-n{len(seeds)}-frames{FRAMES}.png"
        self._picture(step, "frames", name, sheet, metrics)

    def _picture(self, step, name, file, sheet, metrics):
        metrics.image(step, name, sheet)
        if jax.process_index() == 0:
            path = self.workdir / "samples" / file
            path.parent.mkdir(exist_ok=True)
            image_lib.save_png(path, sheet)

    def _copies(self, step, params, metrics):
        """Warn of samples that repeat training images, and show them."""
        images = self._sample(params, np.arange(self.config.log.images), self.grid_cond)
        found = memorised.compare(images, self.pictures.train)
        metrics.write(step, {"memorised": float(found.memorised.mean())})
        if found.memorised.any():
            sheet = memorised.picture(images, found)
            self._picture(step, "nearest", f"{step:08d}-nearest.png", sheet, metrics)
            logs.say(
                f"warning: {memorised.verdict(found)}, see samples/{step:08d}-nearest.png; more"
                " images, fewer steps or more dropout help"
            )

    def _heldout(self, params) -> dict[str, float]:
        """The mean held-out loss, and that at each noise level."""
        source, batch = self.dataset.heldout, self.config.train.batch
        count = min(self.config.log.heldout_images, len(source))
        batch = min(batch, count - count % jax.device_count())
        parts = pipeline.in_order(
            source, range(count - count % batch), batch,
            process=jax.process_index(), processes=jax.process_count(),
        )  # fmt: skip
        losses = []
        for part in parts:
            losses.append(self.heldout_step(params, parallel.put_batch(self.mesh, part)))
        mean = np.mean(np.asarray(losses), 0)
        named = {f"heldout/t={t:.3f}": float(v) for t, v in zip(self.heldout_times, mean)}
        return {"heldout/loss": float(mean.mean())} | named
