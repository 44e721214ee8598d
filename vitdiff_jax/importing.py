"""`--mode=import`: a workdir from published weights, to sample, evaluate, restore and fine-tune.

    --mode=import --source=DiT-XL-2-256x256.pt --family=dit --workdir=runs/dit
    --mode=import --source=model.safetensors --workdir=runs/again      what --mode=export wrote

No code in a file is run. The licence of the weights comes along, as LICENCE.txt.
"""

import hashlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax import averages, experiment, logs, parallel
from vitdiff_jax import config as config_lib
from vitdiff_jax.checkpoint import Checkpoints
from vitdiff_jax.config import ConfigError
from vitdiff_jax.data import imagenet
from vitdiff_jax.interop import exported, families, torch_files
from vitdiff_jax.interop.rules import Found
from vitdiff_jax.interop.weights import WeightsError
from vitdiff_jax.operators import spelling
from vitdiff_jax.train_step import TrainState


def main(
    config: None,
    workdir: pathlib.Path,
    *,
    source: pathlib.Path | None = None,
    family: str | None = None,
) -> None:
    """Write the workdir. --source: a safetensors, .pt or .pth file, or what --mode=export wrote.

    --family: whose names its tensors have: dit, sit, uvit, jit; with what their shapes do not tell,
    sit:path=gvp or dit:heads=8.
    """
    if source is None:
        raise ConfigError("--source: needed: the file of published weights")
    if not source.is_file():
        raise ConfigError(f"--source: there is no file {source}")
    if (workdir / "config.json").exists():
        raise ConfigError(f"{workdir}: holds a run already; import into another --workdir")
    try:
        about, params = _exported(source) if family is None else _published(source, family)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    described = config_lib.complete(about.pop("config"))
    known = experiment.build(described, tuple(about["shape"]), about["conditions"])
    for found in params.values():
        _check(known, found, source)
    if jax.process_index() == 0:
        _write(workdir, described, params, about)
    logs.say(logs.parameter_table(next(iter(params.values()))))
    logs.say(f"licence of these weights: {about['licence']}")
    logs.say(f"imported into {workdir}: go on with --mode=sample, evaluate, restore, export")


def _exported(source: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(facts, {name of the average: parameters}) of a file of --mode=export."""
    found = exported.load(source)
    if found is None:
        raise ConfigError(
            f"--family: needed for {source}, one of {', '.join(families.available())}"
        )
    params, about = found
    name = about.pop("ema")
    kept = float(name) if name[0].isdigit() else 0.0
    about["config"] |= {"train": about["config"]["train"] | {"ema": (kept,), "ema_widths": ()}}
    about["config"]["sample"] |= {"ema": None, "ema_width": None}
    return about, {averages.decay_name(kept): params}


def _published(source: pathlib.Path, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same of a file with its authors' names; their averages, if the file has several."""
    options = spelling.parse(text)
    family = options.pop("name")
    sets = families.sets(family, torch_files.read(source))
    known = families.averages(family)
    names = [name for name in sets if name in known] or [next(iter(sets))]
    params, found = {}, None
    for name in names:
        found, of_set = families.from_torch(family, sets[name], **options)
        params[averages.decay_name(known.get(name, 0.0))] = of_set
    assert found is not None
    module = families.find(family)
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    config, conditions = _described(found)
    config["train"] = {"ema": tuple(map(float, params))}
    about = {
        "config": config, "shape": found.shape, "conditions": conditions, "family": text,
        "source": module.SOURCE, "licence": module.LICENCE, "sha256": digest,
    }  # fmt: skip
    return about, params


def _described(found: Found) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config of a published network, and its conditions, with the data that it must be of."""
    config, conditions = {**found.config}, dict(found.conditions)
    factor = config.get("latent", {}).get("factor", 1)
    if len(conditions.get("label", ())) == imagenet.CLASSES:
        config["data"] = dict(name="imagenet", size=found.shape[0] * factor)
        conditions["label"] = imagenet.class_names()
    return config, conditions


def _check(known: experiment.Experiment, params: Any, source: pathlib.Path) -> None:
    """The parameters must be the network's that the config describes."""
    shapes = jax.tree.map(lambda a: tuple(a.shape), known.param_shapes())
    if jax.tree.map(lambda a: tuple(a.shape), params) != shapes:
        raise WeightsError(f"{source}: its parameters are not those of the network in its config")


def _write(workdir: pathlib.Path, config: Any, params: dict[str, Any], about: dict) -> None:
    """A checkpoint of averages only, then what makes the folder a workdir."""
    checkpoints = Checkpoints(workdir / "checkpoints", report=logs.say)
    replicated = parallel.replicated(parallel.make_mesh())
    emas = jax.device_put(jax.tree.map(np.asarray, params), replicated)
    state = TrainState(jnp.int32(0), jnp.int32(0), {}, {}, emas)
    meta = {"shape": about.pop("shape"), "conditions": about.pop("conditions"), "imported": about}
    checkpoints.save(0, state, meta)
    checkpoints.close()
    (workdir / "LICENCE.txt").write_text(f"{about['licence']}\n\nFrom {about['source']}\n")
    config_lib.save(config, workdir / "config.json")
