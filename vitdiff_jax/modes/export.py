"""`--mode=export`: the parameters of one EMA as a safetensors file.

`ship` makes a model of the package of them, see `inference.pretrained`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import loading, pretrained
from vitdiff_jax.inference.model import TrainedModel
from vitdiff_jax.interop import exported, families
from vitdiff_jax.interop.rules import NetworkSpec
from vitdiff_jax.runtime import logs, paths, tables


def main(config: ConfigDict | None, workdir: epath.Path, *, family: str | None = None) -> None:
    """Write `export/<EMA>.safetensors`: the EMA of config.sample, with the config as metadata.

    --family: with the names and shapes of the original code (dit, sit, uvit, jit), to be used
    there, prefix included; what was imported has the prefix that it came with.
    """
    model = loading.load(workdir, config)
    params = jax.tree.map(np.asarray, model.params)
    if family is not None:
        params = _theirs(family, model.experiment, params, workdir)
    about = _about(model, family, model.licence)
    name = about["ema"]
    path = workdir / "export" / f"{family or 'ema'}-{name}-step{model.step}.safetensors"
    if jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        exported.save(path, params, about)
    logs.say(f"exported EMA {name} of step {model.step} to {path}")


def ship(
    workdir: paths.PathLike, name: str, *, licence: str, data: Sequence[Mapping[str, str]],
    measured: Mapping[str, Any],
) -> None:  # fmt: skip
    """Make `pretrained:NAME` of a workdir's model: two files in the package's source.

    licence: of the weights, one line. data: a row for each source, such as {"what": ..., "licence":
    ..., "sha256": ...}. measured: numbers, by what they are. Parameters are stored as float16;
    ValueError if one does not fit.
    """
    model, target = loading.load(workdir), pretrained.FOLDER / f"{name}.safetensors"
    with np.errstate(over="ignore"):  # refused below
        params = jax.tree.map(lambda a: np.asarray(a).astype(np.float16), model.params)
    if not all(np.isfinite(a).all() for a in jax.tree.leaves(params)):
        raise ValueError(f"{workdir}: has parameters that are not finite in float16")
    about = _about(model, None, licence)
    exported.save(epath.Path(target), params, about)
    facts = {
        "sha256": hashlib.sha256(target.read_bytes()).hexdigest(), "dtype": "float16",
        "parameters": sum(a.size for a in jax.tree.leaves(params)), "data": list(data),
        "measured": measured,
    }  # fmt: skip
    known = {key: about[key] for key in ("step", "ema", "shape", "licence")}
    tables.write(epath.Path(target.with_suffix(".json")), known | facts)


def _about(model: TrainedModel, family: str | None, licence: str) -> dict[str, Any]:
    """The metadata of a file, see `exported.METADATA`."""
    known = model.experiment
    return {
        "config": known.config.to_dict(), "shape": known.shape,
        "conditions": dict(known.conditions), "family": family,
        "ema": experiment_lib.sampled_ema(known.config), "step": model.step, "licence": licence,
    }  # fmt: skip


def _prefix(workdir: epath.Path, family: str) -> str:
    """The prefix that the family's tensors were imported with, else that of published files."""
    path = workdir / loading.IMPORTED
    try:
        about = tables.read(path) if path.exists() else {}
        found, prefix = about.get("family") or "", about.get("prefix", "")
        same = found.partition(":")[0] == family
        if not isinstance(prefix, str):
            raise ValueError("prefix: not a string")
    except (AttributeError, ValueError) as error:
        raise ConfigError(f"{path}: damaged ({error}); import the weights again") from error
    return prefix if same else getattr(families.find(family), "PREFIX", "")


def _theirs(family: str, known: experiment_lib.Experiment, params: Any, workdir: epath.Path) -> Any:
    """The parameters in the format of a family's original code."""
    with experiment_lib.config_errors("--family: "):
        prefix = _prefix(workdir, family)
        found = NetworkSpec(known.config.to_dict(), known.shape, known.conditions, prefix)
        try:
            return families.to_torch(family, found, params)
        except KeyError as error:
            name = known.config.model.name
            raise ValueError(f"{family} does not apply to the model {name}") from error
