"""`--mode=export`: the parameters of one average alone, as one safetensors file."""

import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vitdiff_jax import experiment as experiment_lib
from vitdiff_jax import logs, trained
from vitdiff_jax.interop import exported, families
from vitdiff_jax.interop.rules import Found
from vitdiff_jax.interop.weights import WeightsError


def main(config: ConfigDict | None, workdir: pathlib.Path, *, family: str | None = None) -> None:
    """Write export/<average>.safetensors: config.sample's average, with the config in its head.

    --family: with the names and shapes of its authors (dit, sit, uvit, jit) instead of ours, for
    their own code.
    """
    model = trained.load(workdir, config)
    name = experiment_lib.sampled_ema(model.experiment.config)
    params = jax.tree.map(np.asarray, model.params)
    path = workdir / "export" / f"{family or 'ema'}-{name}-step{model.step}.safetensors"
    path.parent.mkdir(exist_ok=True)
    about = {
        "config": model.experiment.config.to_dict(), "shape": model.experiment.shape,
        "conditions": dict(model.experiment.conditions), "ema": name, "step": model.step,
        "licence": model.licence,
    }  # fmt: skip
    if family is not None:
        params = _theirs(family, model.experiment, params)
    if jax.process_index() == 0:
        exported.save(path, params, about)
    logs.say(f"{name} of step {model.step} in {path}")


def _theirs(family: str, experiment: experiment_lib.Experiment, params: Any) -> Any:
    """The parameters as a family's authors keep them."""
    found = Found(experiment.config.to_dict(), experiment.shape, experiment.conditions)
    try:
        return families.to_torch(family, found, params)
    except ValueError as error:
        raise WeightsError(f"--family: {error}") from error
