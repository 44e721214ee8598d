"""Loading a trained model: from the checkpoints of a workdir, or from those of the package."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.data.pipeline import Dataset
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment import ema as ema_lib
from vitdiff_jax.experiment import rules
from vitdiff_jax.experiment.build import Experiment, build, sampled_ema
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import numbers, pretrained
from vitdiff_jax.inference.model import TrainedModel
from vitdiff_jax.inference.pretrained import Pretrained
from vitdiff_jax.runtime import logs, parallel, paths
from vitdiff_jax.runtime.checkpoint import CheckpointError, Checkpoints

LICENCE, IMPORTED = "LICENCE.txt", "imported.json"
"""Files in a workdir of imported weights; the second only if they were not trained further."""
MAX_EMA_ERROR = 0.2
"""Maximum relative RMS error in the profile of a post-hoc EMA. Eight checkpoints with widths 0.05
and 0.10 give all widths from 0.03 to 0.2 to within 0.10.
"""


def load(
    workdir: paths.PathLike, config: ConfigDict | dict[str, Any] | None = None, *,
    ema: float | None = None, ema_width: float | None = None,
) -> TrainedModel:  # fmt: skip
    """Load the trained model of a workdir: its latest intact checkpoint, the EMA of config.sample.

    Or one that comes with the package: "pretrained:digits", see `pretrained`.
    config: overrides keys that may change after training, such as `sample`; the rest must match the
    workdir. None: as trained. ema: another one of config.train.ema. ema_width: an EMA of that
    relative width, see `experiment.ema`.
    """
    if config is None:
        stored = config_of(workdir)
    else:
        check_config(workdir, stored := config_lib.complete(config))
    name = _ema_name(stored, ema, ema_width)
    mesh, shipped = parallel.make_mesh(), pretrained.find(workdir)
    if shipped is not None:
        experiment, params, step = _of_package(shipped, stored, name, mesh)
    else:
        experiment, params, step = _of_checkpoints(paths.resolve(workdir), stored, name, mesh)
    guide, guide_params = load_guide(experiment)
    experiment = dataclasses.replace(experiment, guide=guide)
    origin = shipped.origin if shipped else {}
    return TrainedModel(experiment, params, step, mesh, licence_of(workdir), guide_params, origin)


def _ema_name(config: ConfigDict, ema: float | None, ema_width: float | None) -> str:
    """The EMA that `load` is to take; ConfigError for one that training has not maintained."""
    if ema is not None and ema_width is not None:
        raise ConfigError("ema_width: ema and ema_width are alternatives; give one of them")
    asked = config.copy_and_resolve_references()
    for name, value in (("ema", ema), ("ema_width", ema_width)):
        if value is not None:
            value = numbers.real(name, value, rules.RANGES[f"sample.{name}"])
            asked.sample.update({"ema": None, "ema_width": None, name: value})
    rules.check_emas(asked)
    return sampled_ema(asked)


def _of_checkpoints(
    workdir: epath.Path, config: ConfigDict, ema: str, mesh: jax.sharding.Mesh
) -> tuple[Experiment, Any, int]:
    """(experiment, parameters, step) of the newest checkpoint."""
    if not (workdir / "checkpoints").is_dir():
        raise CheckpointError(f"{workdir}: contains no checkpoints; train first with --mode=train")
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True, report=logs.say)
    step = checkpoints.newest()
    if step is None:
        raise CheckpointError(f"{workdir}: contains no checkpoints; train first with --mode=train")
    meta = checkpoints.meta(step)
    experiment = build(config, tuple(meta["shape"]), meta["conditions"])
    target = _target(experiment, mesh)
    if ema.startswith("width"):
        params = _posthoc_ema(checkpoints, step, ema, config.train.ema_widths, target)
    else:
        params = checkpoints.restore_emas(step, [ema], target)[ema]
    checkpoints.close()
    return experiment, params, step


def _of_package(
    shipped: Pretrained, config: ConfigDict, ema: str, mesh: jax.sharding.Mesh
) -> tuple[Experiment, Any, int]:
    """The same of a model of the package, which has one EMA; ConfigError for another."""
    about = shipped.about
    if ema != about["ema"]:
        raise ConfigError(
            f"config.sample.ema: pretrained:{shipped.name} has the EMA {about['ema']} alone,"
            f" not {ema}"
        )
    experiment = build(config, tuple(about["shape"]), about["conditions"])
    params = jax.tree.map(
        lambda t, a: jax.device_put(a.astype(t.dtype), t.sharding),
        _target(experiment, mesh), shipped.params(),
    )  # fmt: skip
    return experiment, params, about["step"]


def _target(experiment: Experiment, mesh: jax.sharding.Mesh) -> Any:
    """Shapes, dtypes and shardings of the parameters."""
    sharding = parallel.replicated(mesh)
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
        experiment.param_shapes(),
    )


def config_of(workdir: paths.PathLike, trusted: ConfigDict | None = None) -> ConfigDict:
    """The config of a trained model, see `experiment.config.read`."""
    if shipped := pretrained.find(workdir):
        return shipped.config(trusted=trusted)
    return config_lib.read(paths.resolve(workdir) / "config.json", trusted=trusted)


def licence_of(workdir: paths.PathLike) -> str:
    """The licence of weights that were not trained here, "" of others."""
    if shipped := pretrained.find(workdir):
        return shipped.about["licence"]
    path = paths.resolve(workdir) / LICENCE
    return path.read_text() if path.is_file() else ""


def load_guide(experiment: Experiment) -> tuple[Experiment | None, Any]:
    """The model of config.sample.guide_with and its parameters; ConfigError if incompatible."""
    path = experiment.config.sample.guide_with
    if not path:
        return None, None
    config: Any = config_of(path)
    config.sample.guide_with = None  # no guidance for the guide itself
    found = load(path, config)
    for what, one, other in (
        ("schedule", found.experiment.process.schedule, experiment.process.schedule),
        ("image size", found.experiment.shape, experiment.shape),
        ("conditions", *(_as_json(e.conditions) for e in (found.experiment, experiment))),
    ):
        if one != other:
            raise ConfigError(
                f"config.sample.guide_with: {path} cannot guide this model, its {what} differs:"
                f" {_short(one)} and {_short(other)}"
            )
    return found.experiment, found.params


def _posthoc_ema(
    checkpoints: Checkpoints, step: int, name: str, widths: tuple[float, ...], target: Any
) -> Any:
    """The EMA of a width at a step, synthesised from the stored EMAs of all checkpoints."""
    snapshots = [(n, w) for n in checkpoints.undamaged() if n <= step for w in widths]
    width = float(name.removeprefix("width"))
    weights, error = ema_lib.posthoc_weights(snapshots, step, width)
    if error > MAX_EMA_ERROR:
        raise ConfigError(
            f"config.sample.ema_width: {width} cannot be synthesised from EMAs of widths {widths}"
            f" in {len(snapshots) // len(widths)} checkpoints: the error is {error:.0%}; keep more"
            " checkpoints with config.checkpoint.keep_every, or choose another width"
        )
    total = jax.tree.map(lambda a: np.zeros(a.shape, np.float64), target)
    names = [ema_lib.width_name(w) for w in widths]
    for n, of_step in zip(dict(snapshots), weights.reshape(-1, len(widths))):
        found = checkpoints.restore_emas(n, names, target)
        for name, weight in zip(names, of_step):
            total = jax.tree.map(lambda sum, a, w=weight: sum + w * a, total, found[name])
    return jax.tree.map(lambda a, t: jax.device_put(a.astype(t.dtype), t.sharding), total, target)


def meta_of(dataset: Dataset) -> dict[str, Any]:
    """The metadata of a checkpoint: shape and conditions of the dataset, as JSON."""
    return _as_json({"shape": dataset.shape, "conditions": dict(dataset.conditions)})


def check_data(meta: dict[str, Any], dataset: Dataset) -> None:
    """Reject a dataset whose image shape or conditions differ from those of training."""
    trained = _as_json({**meta, "conditions": dict(meta["conditions"])})
    for name, value in meta_of(dataset).items():
        if value != trained[name]:
            raise ConfigError(
                f"config.data: has the {name} {_short(value)}, but the model was trained with"
                f" {_short(trained[name])}; use the original dataset or another --workdir"
            )


def _as_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """As read back from a JSON file, in which there are no tuples."""
    return json.loads(json.dumps(dict(facts)))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 200 else f"{text[:200]}..."


def check_config(workdir: paths.PathLike, config: ConfigDict) -> None:
    """Reject a config that is incompatible with the one in the workdir, if there is one."""
    folder = paths.resolve(workdir)
    if not pretrained.find(workdir) and not (folder / "config.json").exists():
        return
    lines = config_lib.differences(config_of(workdir, trusted=config), config)
    if (folder / IMPORTED).exists():  # trained on unknown data; see `check_data`
        lines = [line for line in lines if not line.startswith("data.")]
    if lines:
        raise ConfigError(
            f"{workdir} was trained with another config ({'; '.join(lines)});"
            " use the original values or another --workdir"
        )
