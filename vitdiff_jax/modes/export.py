"""`--mode=export`: the parameters of one EMA as a safetensors file."""

import json
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.inference import model as model_lib
from vitdiff_jax.interop import exported, families
from vitdiff_jax.interop.rules import NetworkSpec
from vitdiff_jax.runtime import logs


def main(config: ConfigDict | None, workdir: epath.Path, *, family: str | None = None) -> None:
    """Write `export/<EMA>.safetensors`: the EMA of config.sample, with the config as metadata.

    --family: with the names and shapes of the original code (dit, sit, uvit, jit), to be used
    there; what was imported has the prefix of the names that it came with.
    """
    model = model_lib.load(workdir, config)
    name = experiment_lib.sampled_ema(model.experiment.config)
    params = jax.tree.map(np.asarray, model.params)
    if family is not None:
        params = _theirs(family, model.experiment, params, _prefix(workdir, family))
    about = {
        "config": model.experiment.config.to_dict(), "shape": model.experiment.shape,
        "conditions": dict(model.experiment.conditions), "family": family, "ema": name,
        "step": model.step, "licence": model.licence,
    }  # fmt: skip
    path = workdir / "export" / f"{family or 'ema'}-{name}-step{model.step}.safetensors"
    if jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        exported.save(path, params, about)
    logs.say(f"exported EMA {name} of step {model.step} to {path}")


def _prefix(workdir: epath.Path, family: str) -> str:
    """The prefix that the names of the family's tensors had when they were imported."""
    path = workdir / model_lib.IMPORTED
    about = json.loads(path.read_text()) if path.exists() else {}
    same = (about.get("family") or "").partition(":")[0] == family
    return about.get("prefix", "") if same else ""


def _theirs(family: str, known: experiment_lib.Experiment, params: Any, prefix: str) -> Any:
    """The parameters in the format of a family's original code."""
    found = NetworkSpec(known.config.to_dict(), known.shape, known.conditions, prefix)
    with experiment_lib.config_errors("--family: "):
        try:
            return families.to_torch(family, found, params)
        except KeyError as error:
            name = known.config.model.name
            raise ValueError(f"{family} does not apply to the model {name}") from error
