"""What a run prints before its first step: data, model, devices, and where results go."""

from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.data import card
from vitdiff_jax.data.pipeline import Dataset
from vitdiff_jax.experiment.build import Experiment
from vitdiff_jax.training import muon


def lines(
    config: ConfigDict, workdir: epath.Path, dataset: Dataset, experiment: Experiment
) -> list[str]:
    """The summary of a training run, one topic per line."""
    warmup, steps = config.optimizer.warmup, config.train.steps
    shapes = experiment.param_shapes()
    warning = (
        f"warning: config.optimizer.warmup: {warmup:,} steps of warm-up in a run of {steps:,}: the"
        f" learning rate stays below {config.optimizer.learning_rate:g}"
    )
    return [
        f"data: {dataset.origin}; {_inputs(dataset)}",
        *card.lines(dataset),
        f"model: {model(experiment)}",
        *([f"optimizer: {muon.summary(shapes)}"] if config.optimizer.name == "muon" else []),
        f"devices: {_devices(config)}",
        f"training: {config.train.steps:,} steps of {config.train.batch} images; samples, metrics,"
        f" checkpoints and report.html in {workdir}",
        *([warning] if warmup > steps else []),
    ]


def _inputs(dataset: Dataset) -> str:
    """Image shape and conditions, such as "8x8x1, conditions: label (10 classes)"."""
    shape, counts = "x".join(map(str, dataset.shape)), {}
    if dataset.classes:
        counts["label"] = f" ({dataset.classes:,} classes)"
    if "attributes" in dataset.conditions:
        counts["attributes"] = f" ({len(dataset.conditions['attributes'])})"
    names = [f"{name}{counts.get(name, '')}" for name in dataset.conditions]
    return f"{shape}, conditions: {', '.join(names)}" if names else f"{shape}, unconditional"


def model(experiment: Experiment) -> str:
    """Name, size, number of parameters and FLOPs of the network."""
    options, network = experiment.config.model, experiment.model
    count = sum(int(np.prod(a.shape)) for a in jax.tree.leaves(experiment.param_shapes()))
    facts = [f"{count:,} parameters", f"{_readable(experiment.forward_flops())}FLOPs per image"]
    if options.get("dtype"):
        facts.append(options.dtype)
    return ", ".join([f"{options.name}{_size(options, network)}", *facts])


def _readable(number: float) -> str:
    """Three digits and a unit prefix: 1.23e9 -> "1.23 G"."""
    scale, prefix = (1e9, "G") if number >= 1e9 else (1e6, "M")
    return f"{number / scale:.3g} {prefix}"


def _size(options: ConfigDict, network: Any) -> str:
    """A suffix: "-B/16" for a named size, else " (width 64, depth 4, patch 2)"."""
    patch = options.get("patch")
    if options.get("size") and options.get("width") is None and options.get("depth") is None:
        return f"-{options.size}" + (f"/{patch}" if patch else "")
    if not hasattr(network, "dim"):
        return ""
    return f" (width {network.dim('width')}, depth {network.dim('depth')}, patch {patch})"


def _devices(config: ConfigDict) -> str:
    """Number and kind of devices, number of processes, compiler and sharding."""
    count, processes = jax.device_count(), jax.process_count()
    text = f"{count} x {jax.devices()[0].device_kind}"
    text += f" in {processes} processes" if processes > 1 else ""
    sharding = "data parallel" if count > 1 else "no sharding"
    if config.parallel.zero1:
        sharding = "ZeRO-1"
    elif config.parallel.fsdp > 1:
        sharding = f"FSDP over {config.parallel.fsdp}"
    return f"{text}; {config.parallel.compiler}, {sharding}"
