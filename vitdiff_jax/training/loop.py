"""The training loop: `--mode=train`, and `vitdiff_jax.fit` from Python.

From top to bottom: set up, restore or initialise the state, then train. The data and the randomness
of a step are functions of (seed, step), so only the state is saved.
"""

import contextlib
import functools
import itertools
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.data import card, gather, pipeline
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.inference import loading, pretrained
from vitdiff_jax.runtime import lock, logs, parallel, paths, processes, tables
from vitdiff_jax.runtime.checkpoint import Checkpoints
from vitdiff_jax.training import finetune, monitor, profiling, summary
from vitdiff_jax.training import frechet as frechet_lib
from vitdiff_jax.training import program as program_lib
from vitdiff_jax.training import step as step_lib
from vitdiff_jax.training.objective import Batch, OneCall
from vitdiff_jax.training.signals import StopRequest

FINISHED, STOPPED = "finished", "stopped"
FOLDERS = ("samples", "restored", "evaluation", "statistics", "export")
"""Folders in a workdir that modes write files to."""


class TrainingError(RuntimeError):
    """Training that cannot continue; the message is one line."""


def train(
    config: ConfigDict | dict[str, Any],
    workdir: paths.PathLike,
    *,
    profile: str | None = None,
    verbose: bool = False,
) -> str:
    """Train, or resume, until config.train.steps; returns "finished", or "stopped" by a signal.

    config: complete (from `config.load`), or partial, to be completed with the defaults. profile:
    "first:last", the steps to trace into `<workdir>/profile`, see `profiling`. verbose: print the
    table of parameters.
    """
    pretrained.check_trainable(workdir)
    config, workdir = config_lib.complete(config), paths.resolve(workdir)
    traced = profiling.Profile(profiling.parse(profile, config.train.steps), workdir / "profile")
    if (workdir / loading.IMPORTED).exists():
        raise TrainingError(
            f"{workdir}: holds imported weights; to fine-tune them, set config.train.init_from to"
            " it and use another --workdir"
        )
    main = processes.is_first()
    # Now, and not only after minutes of reading data.
    dead = lock.dead_owner(workdir, logs.say) if main else None
    parallel.wait_for_first()
    dataset = experiment_lib.dataset(config)
    parallel.halve_cpu(*_batches(config, dataset))
    experiment = experiment_lib.build(config, dataset.shape, dataset.conditions)
    with experiment_lib.config_errors("config.parallel."):
        mesh = parallel.make_mesh(config.parallel.fsdp)
    _check_devices(config, dataset)
    _check_processes(dataset)
    finetune.check(config, workdir)
    frechet_lib.check(config, experiment)
    loading.check_config(workdir, config)
    watch = monitor.Monitor(config, workdir, dataset, experiment, mesh)
    with _one_writer(workdir, dead) as owner:
        loading.check_config(workdir, config)  # again: now it stays as it is
        logs.say("\n".join(summary.lines(config, workdir, dataset, experiment)))
        checkpoints = Checkpoints(
            workdir / "checkpoints",
            keep=config.checkpoint.keep,
            keep_every=config.checkpoint.keep_every,
            report=logs.say,
        )
        with StopRequest(checkpoints) as stop:
            run = Run(config, workdir, dataset, experiment, mesh, checkpoints, owner)
            if verbose:
                logs.say(logs.parameter_table(run.shapes.params))
            try:
                return run.train(stop, watch, traced)
            finally:
                traced.close()
                checkpoints.close()


def main(
    config: ConfigDict, workdir: epath.Path, *, profile: str | None = None, verbose: bool = False
) -> str:
    """`--mode=train`; --profile, --verbose: see `train`."""
    return train(config, workdir, profile=profile, verbose=verbose)


def _batches(config: ConfigDict, dataset: pipeline.Dataset) -> list[int]:
    """The sizes of training batches, and of held-out ones, if they are smaller."""
    batch, held = config.train.batch, min(config.log.heldout_images, len(dataset.heldout))
    sizes = [batch // max(1, config.train.accumulate)]
    return [*sizes, held] if config.log.heldout_every and held < batch else sizes


def _check_devices(config: ConfigDict, dataset: pipeline.Dataset) -> None:
    """Reject batches that cannot be sharded over the devices."""
    if not len(dataset.train):
        raise config_lib.ConfigError("config.data: there are no training images")
    devices, batch, parts = jax.device_count(), config.train.batch, config.train.accumulate
    if batch % (devices * parts):
        raise config_lib.ConfigError(
            f"config.train.batch: {batch} is not divisible by {devices} devices x"
            f" {parts} microbatches (config.train.accumulate)"
        )
    count = min(config.log.heldout_images, len(dataset.heldout))
    if config.log.heldout_every and count < devices:
        raise config_lib.ConfigError(
            f"config.log.heldout_images: {count} held-out images are too few for {devices} devices;"
            " config.log.heldout_every=0 turns the held-out loss off"
        )


def _check_processes(dataset: pipeline.Dataset) -> None:
    """Reject processes that see different data, as copies on several machines may be."""
    if jax.process_count() > 1:
        found = gather.allgather_objects([dataset.mark])
        if others := [i for i, mark in enumerate(found) if mark != found[0]]:
            raise pipeline.DataError(
                f"process {others[0]} sees other data than process 0: {dataset.origin}; copy the"
                " same files to all machines"
            )


@contextlib.contextmanager
def _one_writer(workdir: epath.Path, dead: str | None) -> Iterator[lock.Lock | None]:
    """The lock of the workdir, which process 0 holds; without what a failed start has created."""
    if jax.process_index() > 0:
        yield None
        return
    with lock.hold(workdir, dead) as owner:
        try:
            yield owner
        finally:
            paths.remove_empty(workdir / "checkpoints")


class Run:
    """A training run that has been set up."""

    def __init__(self, config, workdir, dataset, experiment, mesh, checkpoints, owner=None):
        self.config, self.workdir, self.dataset, self.owner = config, workdir, dataset, owner
        self.experiment, self.mesh, self.checkpoints = experiment, mesh, checkpoints
        self.frechet = frechet_lib.prepare(config, experiment, dataset, mesh)
        program = program_lib.build(config, experiment, mesh, self.frechet)
        self.init, self.shapes, self.shardings = program.init, program.shapes, program.shardings
        self.step = program.step
        self.trained: str | None = None  # the mark of the data of the checkpoint

    def state(self) -> step_lib.TrainState:
        """The state of the latest intact checkpoint, or an initial one, sharded over the mesh."""
        step = self.checkpoints.newest()
        if step is None:
            state = jax.jit(self.init, out_shardings=self.shardings)()
            if self.config.train.init_from is not None:
                state = finetune.init_from(state, self.experiment)
            return state if self.frechet is None else self._with_moments(state, self.frechet)
        if step > self.config.train.steps:
            raise config_lib.ConfigError(
                f"config.train.steps: {self.config.train.steps} is less than the {step} steps that"
                f" {self.workdir} was trained for: sample with --mode=sample, or give more steps"
            )
        target = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
            self.shapes,
            self.shardings,
        )
        meta = self.checkpoints.meta(step)
        loading.check_data(meta, self.dataset)
        self.trained = meta.get("mark")
        state = self.checkpoints.restore(step, target)
        self.checkpoints.set_aside_after(step)
        return state

    def _with_moments(self, state: step_lib.TrainState, frechet: frechet_lib.FrechetLoss):
        """A first state with the moments of what its parameters generate."""
        config, key = self.config, jax.random.key(self.config.seed)
        made = OneCall(
            self.experiment.model, self.experiment.process, frechet, self.experiment.average
        )

        @functools.partial(parallel.WithMesh, self.mesh)
        @functools.partial(jax.jit, out_shardings=parallel.replicated(self.mesh))
        def moments(params, batch, number):
            key_of_batch = jax.random.fold_in(jax.random.fold_in(key, 2**31 - 2), number)
            return frechet.moments(*made.images(params, batch, key_of_batch))

        count = -(-config.train.frechet.images // config.train.batch)
        batches = itertools.islice(self._batches(0), count)
        # One at a time, for on a CPU's devices concurrent programs with collectives can deadlock.
        parts = [jax.device_get(moments(state.params, batch, i)) for i, batch in enumerate(batches)]
        mean = jax.tree.map(lambda *a: np.mean(a, 0), *parts)
        return state.replace(moments=jax.device_put(mean, self.shardings.moments))

    def _batches(self, start: int) -> Iterator[Batch]:
        """Global batches of the training images from step `start` on."""
        host_batches = pipeline.batches(
            self.dataset.train, self.config.train.batch, seed=self.config.seed, start=start,
            process=jax.process_index(), processes=jax.process_count(),
            threads=self.config.parallel.data_threads,
        )  # fmt: skip
        return parallel.prefetch(self.mesh, host_batches)

    def train(self, stop: StopRequest, monitor: monitor.Monitor, profile: profiling.Profile) -> str:
        """Train until config.train.steps or a signal."""
        state, steps = self.state(), self.config.train.steps
        start = int(state.step)
        self._open_workdir(start < steps)  # only now: all that can be refused has been checked
        if start >= steps:
            logs.say(
                f"already trained for {start:,} steps (config.train.steps={steps}): sample with"
                " --mode=sample, or continue with a larger --config.train.steps"
            )
            return FINISHED
        if start:
            logs.say(f"resuming at step {start} of {steps}")
        if profile.steps and start >= profile.steps[-1]:
            logs.say(f"no profile: steps {profile.text} are already done, resuming at step {start}")
        flops = self.experiment.forward_flops()
        metrics = logs.Metrics(self.workdir, start, steps, self.config.train.batch, flops)
        try:
            return self._loop(state, start, steps, metrics, stop, monitor, profile)
        finally:
            metrics.close()

    def _open_workdir(self, trains: bool) -> None:
        """Write config.json and data.json, and clear away what killed runs left half written.

        trains: False for a finished run, whose data.json stays that of the data it was trained on.
        """
        if jax.process_index() > 0:
            return
        path = self.workdir / "config.json"
        for line in config_lib.changes_of_learning(tables.read(path), self.config):
            logs.say(f"changed from here on: config.{line}")
        for folder in (self.workdir, *(self.workdir / name for name in FOLDERS)):
            paths.clean(folder)
        if not path.exists():
            finetune.copy_licence(self.config, self.workdir)
        config_lib.save(self.config, path)
        self._describe_data(trains)

    def _describe_data(self, trains: bool) -> None:
        """Say if the data have changed; write data.json, for the report and the next run."""
        for line in card.changed(self.workdir, self.dataset, self.trained):
            logs.say(line)
        if trains:
            known = card.facts(self.dataset) | {"shape": self.experiment.image_shape}
            tables.write(self.workdir / "data.json", known)

    def _loop(self, state, start, steps, metrics, stop, monitor, profile) -> str:
        """The loop; metrics are read one step late, so that the device never waits for the host."""
        batches, previous = self._batches(start), None
        for step in range(start + 1, steps + 1):
            with profile.begin(step):
                began = time.monotonic()
                batch = next(batches)
                waited = time.monotonic() - began
                state, values = self.step(state, batch)
            profile.end(step, values)
            if previous is not None:
                self._check_finite(step - 1, previous)
            previous = values
            metrics.tick(step, waited)
            stopping = stop()
            last = step == steps or stopping
            if last or step % self.config.log.every == 0:
                self._check_finite(step, values)
                metrics.log(step, {name: float(value) for name, value in values.items()})
            monitor.after_step(step, state.ema, metrics, step == steps)
            if last or step % self.config.checkpoint.every == 0:
                metrics.upload()  # first: a run resumed from the checkpoint has all lines up to it
                self._save(step, state)
            if stopping and step < steps:
                logs.say(
                    f"stopped by a signal at step {step}, saved; run the same command to resume"
                )
                return STOPPED
        logs.say(f"finished at step {steps}; samples in {self.workdir / 'samples'}")
        return FINISHED

    def _check_finite(self, step: int, values: dict[str, jax.Array]) -> None:
        """Stop a run whose losses or gradients stay non-finite; its parameters are unaffected."""
        bad, most = int(values["bad_steps"]), self.config.train.max_bad_steps
        if bad >= most:
            raise TrainingError(
                f"non-finite loss or gradient for {bad} consecutive steps, up to step {step}; these"
                " steps were skipped; resume with a lower config.optimizer.learning_rate"
                f" (now {self.config.optimizer.learning_rate:g}) or config.optimizer.clip=1.0: both"
                " may change in the same workdir"
            )

    def _save(self, step: int, state: step_lib.TrainState) -> None:
        if self.owner is not None:
            self.owner.check()
        meta = loading.meta_of(self.dataset) | {"mark": self.dataset.mark}
        self.checkpoints.save(step, state, meta)
