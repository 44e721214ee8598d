"""The compiled program of training: initial state and step of a config, sharded over a mesh.

Training runs it; `--mode=plan` compiles the same program ahead of time.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.models import conditions
from vitdiff_jax.runtime import flops, parallel
from vitdiff_jax.training import muon
from vitdiff_jax.training import step as step_lib
from vitdiff_jax.training.frechet import FrechetLoss
from vitdiff_jax.training.objective import Batch, Denoising, Objective, OneCall

OPTIMIZERS = {"adamw": step_lib.adamw, "muon": muon.muon}


class Step:
    """A compiled step(state, batch) with what its objective prepares."""

    def __init__(self, compiled: Any, objective: Objective):
        self.compiled, self.objective = compiled, objective

    def __call__(self, state: step_lib.TrainState, batch: Batch) -> tuple[Any, Any]:
        return self.compiled(state, batch, self.objective.prepared(state.moments))

    def lower(self, state: Any, batch: Any) -> Any:
        """Like the method of a jitted step, for shapes; not for a Fréchet loss."""
        return self.compiled.lower(state, batch, ())


@dataclasses.dataclass(frozen=True)
class Program:
    """init() -> state, its shapes and shardings, and the compiled step(state, batch)."""

    init: Callable[[], step_lib.TrainState]
    shapes: step_lib.TrainState
    shardings: step_lib.TrainState
    step: Callable[[step_lib.TrainState, Batch], tuple[step_lib.TrainState, Any]]


def build(
    config: ConfigDict, experiment: experiment_lib.Experiment, mesh: jax.sharding.Mesh,
    frechet: FrechetLoss | None = None,
) -> Program:  # fmt: skip
    """The program of a complete config on this mesh; nothing is compiled or executed yet.

    frechet: the loss of config.train.frechet.
    """
    kind, (optimizer, rate) = config.parallel, _optimizer(config)
    init = make_init(config, experiment, frechet)
    shapes = jax.eval_shape(init)
    shardings = parallel.state_shardings(mesh, shapes, zero=kind.zero1)
    whole = parallel.replicated(mesh)  # the host reads them
    shardings = shardings.replace(moments=jax.tree.map(lambda _: whole, shapes.moments))
    made = objective(config, experiment, frechet)
    step = step_lib.make_train_step(
        made, optimizer, rate, seed=config.seed,
        accumulate=config.train.accumulate, gradient_dtype=config.train.gradient_dtype,
        **_data_parallel(kind, mesh, shapes.params),
    )  # fmt: skip
    compiled = parallel.compile_step(step, mesh, shardings, kind.compiler)
    return Program(init, shapes, shardings, Step(compiled, made))


def objective(
    config: ConfigDict, experiment: experiment_lib.Experiment, frechet: FrechetLoss | None = None
) -> Objective:
    """What training minimises."""
    model, process, average = experiment.model, experiment.process, experiment.average
    if frechet is not None:
        return OneCall(model, process, frechet, average)
    return Denoising(
        model, process, experiment.time_distribution, batch_size=config.train.batch,
        label_dropout=config.diffusion.label_dropout, stratified=config.diffusion.stratified,
        degradation=experiment_lib.degradation_of(config, experiment.shape, "train"),
        average=average,
    )  # fmt: skip


def _data_parallel(kind: Any, mesh: jax.sharding.Mesh, params: Any) -> dict[str, Any]:
    """How gradients are reduced over devices; {}: by XLA, as FSDP needs, or on a single device."""
    if kind.compiler == "pmap":
        return {"data_parallel": parallel.by_pmap}
    if kind.fsdp > 1 or mesh.size == 1:
        return {}
    return {"data_parallel": parallel.by_shard_map(mesh, params, zero=kind.zero1)}


def make_init(
    config: ConfigDict, experiment: experiment_lib.Experiment, frechet: FrechetLoss | None = None
) -> Callable[[], step_lib.TrainState]:
    """A function that returns the initial state."""
    names = experiment_lib.tracked_emas(config)
    optimizer, _ = _optimizer(config)
    return step_lib.make_init(
        experiment.model, optimizer, names, config.seed, experiment.shape,
        frechet.zeros if frechet else dict,
    )  # fmt: skip


def _optimizer(config: ConfigDict):
    """(optimiser, learning-rate schedule) of config.optimizer."""
    options = config.optimizer.to_dict()
    rate = step_lib.learning_rate(
        peak=options.pop("learning_rate"), warmup=options.pop("warmup"),
        decay=options.pop("decay"), steps=config.train.steps,
    )  # fmt: skip
    return OPTIMIZERS[options.pop("name")](rate, **options), rate


def optimizer_flops(config: ConfigDict, experiment: experiment_lib.Experiment) -> float:
    """FLOPs of the matrix products in the optimiser's update of all parameters; AdamW has none."""
    optimizer, _ = _optimizer(config)
    params = experiment.param_shapes()
    return flops.count(optimizer.update, params, jax.eval_shape(optimizer.init, params), params)


def batch_shapes(
    config: ConfigDict, experiment: experiment_lib.Experiment
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a global batch from the data pipeline."""
    size, shape = config.train.batch, experiment.shape
    kind = jnp.float32 if config.latent.factor > 1 else jnp.uint8
    known = experiment.model.conditions
    cond = jax.eval_shape(lambda: conditions.null_batch(known, size, *shape[:2]))
    if config.degradation.operators:  # computed inside the step
        cond.pop("hint")
    image = jax.ShapeDtypeStruct((size, *shape), kind)
    return {"image": image, "index": jax.ShapeDtypeStruct((size,), "int32")} | cond
