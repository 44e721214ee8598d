"""The training loop: `--mode=train`, and `vitdiff_jax.fit` for Python.

Read it from top to bottom: prepare, restore or create the state, then step after step. What a step
sees and draws follows from (seed, step), so nothing but the state is saved.
"""

import time
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.data import pipeline
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.inference import model as model_lib
from vitdiff_jax.runtime import logs, parallel, paths
from vitdiff_jax.runtime.checkpoint import Checkpoints
from vitdiff_jax.training import finetune, monitor, profiling
from vitdiff_jax.training import program as program_lib
from vitdiff_jax.training import step as step_lib
from vitdiff_jax.training.signals import StopRequest

FINISHED, STOPPED = "finished", "stopped"


class TrainingError(RuntimeError):
    """Training that cannot go on; the message is one line."""


def train(
    config: ConfigDict | dict[str, Any], workdir: paths.Given, *, profile: str | None = None
) -> str:
    """Train, or resume, until config.train.steps; "finished", or "stopped" by a signal.

    config: complete (from `config.load`), or a part, which is completed with the defaults.
    profile: "first:last", the steps to trace into `<workdir>/profile`, see `profiling`.
    """
    config, workdir = config_lib.complete(config), paths.reached(workdir)
    traced = profiling.Profile(profiling.parse(profile, config.train.steps), workdir / "profile")
    if (workdir / model_lib.IMPORTED).exists():
        raise TrainingError(
            f"{workdir}: holds imported weights; to train them further, name it as"
            " config.train.init_from and give another --workdir"
        )
    finetune.check(config, workdir)
    dataset = experiment_lib.dataset(config)
    experiment = experiment_lib.build(config, dataset.shape, dataset.conditions)
    with experiment_lib.named("config.parallel."):
        mesh = parallel.make_mesh(config.parallel.fsdp)
    _check_devices(config, dataset)
    watch = monitor.Monitor(config, workdir, dataset, experiment, mesh)
    _open_workdir(workdir, config)
    logs.say(f"data: {dataset.origin}")
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        keep=config.checkpoint.keep,
        keep_every=config.checkpoint.keep_every,
        report=logs.say,
    )
    with StopRequest(checkpoints) as stop:
        run = Run(config, workdir, dataset, experiment, mesh, checkpoints)
        try:
            return run.go(stop, watch, traced)
        finally:
            traced.close()
            checkpoints.close()


def main(config: ConfigDict, workdir: epath.Path, *, profile: str | None = None) -> str:
    """`--mode=train`; --profile: see `train`."""
    return train(config, workdir, profile=profile)


def _check_devices(config: ConfigDict, dataset: pipeline.Dataset) -> None:
    """Refuse batches that cannot be cut over the devices; sampling does not mind."""
    if not len(dataset.train):
        raise config_lib.ConfigError("config.data: there are no images to train on")
    devices, batch, parts = jax.device_count(), config.train.batch, config.train.accumulate
    if batch % (devices * parts):
        raise config_lib.ConfigError(
            f"config.train.batch: {batch} does not divide by {devices} devices x"
            f" {parts} parts (config.train.accumulate)"
        )
    count = min(config.log.heldout_images, len(dataset.heldout))
    if config.log.heldout_every and count < devices:
        raise config_lib.ConfigError(
            f"config.log.heldout_images: {count} held-out images are too few for {devices} devices;"
            " config.log.heldout_every=0 does without"
        )


def _open_workdir(workdir: epath.Path, config: ConfigDict) -> None:
    """Make the workdir with its config.json; refuse one of another config, or a read-only one."""
    model_lib.check_same(workdir, config)
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        config_lib.save(config, workdir / "config.json")


class Run:
    """One training run: what the loop needs, prepared."""

    def __init__(self, config, workdir, dataset, experiment, mesh, checkpoints):
        self.config, self.workdir, self.dataset = config, workdir, dataset
        self.experiment, self.mesh, self.checkpoints = experiment, mesh, checkpoints
        program = program_lib.build(config, experiment, mesh)
        self.init, self.shapes, self.shardings = program.init, program.shapes, program.shardings
        self.step = program.step

    def state(self) -> step_lib.TrainState:
        """The newest undamaged checkpoint's state, or a new one, made in place on the mesh."""
        step = self.checkpoints.newest(set_aside=True)
        if step is None:
            state = jax.jit(self.init, out_shardings=self.shardings)()
            given = self.config.train.init_from is not None
            return finetune.start(state, self.experiment, self.workdir) if given else state
        target = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
            self.shapes,
            self.shardings,
        )
        model_lib.check_data(self.checkpoints.meta(step), self.dataset)
        state = self.checkpoints.restore(step, target)
        logs.say(f"resuming at step {step} of {self.config.train.steps}")
        return state

    def go(self, stop: StopRequest, monitor: monitor.Monitor, profile: profiling.Profile) -> str:
        """Train to the end, or to a signal."""
        state, steps = self.state(), self.config.train.steps
        start = int(state.step)
        if start >= steps:
            logs.say(
                f"finished already, at step {start}: draw images with --mode=sample, or go on with"
                " a larger --config.train.steps"
            )
            return FINISHED
        if start == 0:
            logs.say(logs.parameter_table(state.params))
        if profile.steps and start >= profile.steps[-1]:
            logs.say(f"no profile: steps {profile.text} are done, this run goes on at {start}")
        flops = self.experiment.forward_flops() if logs.peak_flops() else 0.0
        metrics = logs.Metrics(self.workdir, start, steps, self.config.train.batch, flops)
        try:
            return self._loop(state, start, steps, metrics, stop, monitor, profile)
        finally:
            metrics.close()

    def _loop(self, state, start, steps, metrics, stop, monitor, profile) -> str:
        """Step after step; metrics are read one step late, so that the device never waits."""
        source = self.dataset.train
        host_batches = pipeline.batches(
            source, self.config.train.batch, seed=self.config.seed, start=start,
            process=jax.process_index(), processes=jax.process_count(),
            threads=self.config.parallel.data_threads,
        )  # fmt: skip
        batches = parallel.prefetch(self.mesh, host_batches)
        before = None
        for step in range(start + 1, steps + 1):
            with profile.begin(step):
                asked = time.monotonic()
                batch = next(batches)
                waited = time.monotonic() - asked
                state, values = self.step(state, batch)
            profile.end(step, values)
            if before is not None:
                self._check(step - 1, before)
            before = values
            metrics.tick(step, waited)
            stopping = stop()
            last = step == steps or stopping
            if last or step % self.config.log.every == 0:
                self._check(step, values)
                metrics.line(step, {name: float(value) for name, value in values.items()})
            monitor.look(step, state.ema, metrics, step == steps)
            if last or step % self.config.checkpoint.every == 0:
                metrics.send()  # before: a run that goes on from there has all lines up to it
                self._save(step, state)
            if stopping and step < steps:
                logs.say(f"stopped by a signal at step {step}, saved; the same command goes on")
                return STOPPED
        logs.say(f"finished at step {steps}; samples in {self.workdir / 'samples'}")
        return FINISHED

    def _check(self, step: int, values: dict[str, jax.Array]) -> None:
        """Stop a run whose losses or gradients stay non-finite; its parameters are still good."""
        bad, most = int(values["bad_steps"]), self.config.train.max_bad_steps
        if bad >= most:
            raise TrainingError(
                f"loss or gradient was not finite {bad} steps in a row, up to step {step}; nothing"
                " of it entered the parameters; try a lower config.optimizer.learning_rate or"
                " config.optimizer.clip=1.0"
            )

    def _save(self, step: int, state: step_lib.TrainState) -> None:
        self.checkpoints.save(step, state, model_lib.meta_of(self.dataset))
