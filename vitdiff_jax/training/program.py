"""What training compiles: the first state and the step of a config, laid out on a mesh.

Training runs it; `--mode=plan` compiles the very same for devices that are not there.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.models import conditions
from vitdiff_jax.runtime import parallel
from vitdiff_jax.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Program:
    """init() -> state, its shapes and shardings, and the compiled step(state, batch)."""

    init: Callable[[], step_lib.TrainState]
    shapes: step_lib.TrainState
    shardings: step_lib.TrainState
    step: Callable[[step_lib.TrainState, step_lib.Batch], tuple[step_lib.TrainState, Any]]


def build(
    config: ConfigDict, experiment: experiment_lib.Experiment, mesh: jax.sharding.Mesh
) -> Program:
    """The program of a complete config on this mesh; nothing is compiled or computed yet."""
    kind, (optimizer, rate) = config.parallel, _optimizer(config)
    model, process = experiment.model, experiment.process
    init = make_init(config, experiment)
    shapes = jax.eval_shape(init)
    shardings = parallel.state_shardings(mesh, shapes, zero=kind.zero1)
    step = step_lib.make_train_step(
        model, process, experiment.time_distribution, optimizer, rate,
        seed=config.seed, batch_size=config.train.batch,
        label_dropout=config.diffusion.label_dropout, stratified=config.diffusion.stratified,
        accumulate=config.train.accumulate,
        gradient_dtype=config.train.gradient_dtype,
        degradation=experiment_lib.degradation_of(config, experiment.shape, "train"),
        **_spread(kind, mesh, shapes.params),
    )  # fmt: skip
    return Program(
        init, shapes, shardings, parallel.compile_step(step, mesh, shardings, kind.compiler)
    )


def _spread(kind: Any, mesh: jax.sharding.Mesh, params: Any) -> dict[str, Any]:
    """How gradients go over devices; {}: XLA sees to it, as FSDP needs, or there is one device."""
    if kind.compiler == "pmap":
        return {"spread": parallel.by_pmap}
    if kind.fsdp > 1 or mesh.size == 1:
        return {}
    return {"spread": parallel.by_shard_map(mesh, params, zero=kind.zero1)}


def make_init(
    config: ConfigDict, experiment: experiment_lib.Experiment
) -> Callable[[], step_lib.TrainState]:
    """A function of nothing that makes the first state."""
    names = experiment_lib.tracked_emas(config)
    optimizer, _ = _optimizer(config)
    return step_lib.make_init(experiment.model, optimizer, names, config.seed, experiment.shape)


def _optimizer(config: ConfigDict):
    """(config.optimizer, its learning rate)."""
    options = config.optimizer.to_dict()
    rate = step_lib.learning_rate(
        peak=options.pop("learning_rate"), warmup=options.pop("warmup"),
        decay=options.pop("decay"), steps=config.train.steps,
    )  # fmt: skip
    return step_lib.adamw(rate, **options), rate


def batch_shapes(
    config: ConfigDict, experiment: experiment_lib.Experiment
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a global batch, as the data pipeline makes it."""
    size, shape = config.train.batch, experiment.shape
    kind = jnp.float32 if config.latent.factor > 1 else jnp.uint8
    cond = jax.eval_shape(lambda: conditions.blank(experiment.model.conditions, size, *shape[:2]))
    if config.degradation.operators:  # made within the step
        cond.pop("hint")
    image = jax.ShapeDtypeStruct((size, *shape), kind)
    return {"image": image, "index": jax.ShapeDtypeStruct((size,), "int32")} | cond
