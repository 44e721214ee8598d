"""`--mode=evaluate`: draw samples with fixed seeds, measure them, write evaluation.json."""

import json
import os
import pathlib
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from vitdiff_jax import config as config_lib
from vitdiff_jax import experiment as experiment_lib
from vitdiff_jax import logs, prompts, sample
from vitdiff_jax.config import ConfigError


def evaluate(model: sample.Trained, config: ConfigDict) -> dict[str, dict[str, float]]:
    """The results of config.evaluate.metrics on config.evaluate.images samples."""
    dataset = experiment_lib.dataset(config)
    known = model.experiment
    sample.check_data({"shape": known.shape, "conditions": known.conditions}, dataset)
    metrics = []
    for name in config.evaluate.metrics:
        make = config_lib.find(config_lib.METRICS, "config.evaluate.metrics", name)
        try:
            metrics.append(make(dataset))
        except ValueError as error:
            raise ConfigError(f"config.evaluate.metrics: {error}") from error
    count, batch = config.evaluate.images, config.sample.batch
    for first in range(0, count, batch):
        n = min(batch, count - first)
        cond = prompts.of_examples(dataset, n, first)
        images = model.draw(cond, n, config.evaluate.seed + first)
        for metric in metrics:
            metric.update(images, cond)
    return {metric.name: metric.result() for metric in metrics}


def main(config: ConfigDict | None, workdir: pathlib.Path) -> None:
    """Evaluate the newest checkpoint and write evaluation.json with every setting."""
    model = sample.load(workdir, config)
    config = model.experiment.config
    if not config.evaluate.metrics:
        raise ConfigError("config.evaluate.metrics: empty; name what to measure")
    start = time.monotonic()
    results = evaluate(model, config)
    for name, values in results.items():
        shown = "  ".join(f"{key} {value:.4f}" for key, value in values.items())
        logs.say(f"{name}: {shown}")
    report = {
        "results": results,
        "step": model.step,
        "images": config.evaluate.images,
        "ema": experiment_lib.sampled_ema(config),
        "sample": config.sample.to_dict(),
        "evaluate": config.evaluate.to_dict(),
        "seconds": round(time.monotonic() - start, 1),
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
    }
    if jax.process_index() == 0:
        partial = workdir / "evaluation.partial"
        partial.write_text(json.dumps(report, indent=2) + "\n")
        os.replace(partial, workdir / "evaluation.json")
    logs.say(f"written to {workdir / 'evaluation.json'}")
