"""Which config keys each mode uses, so that none is given and ignored without a word."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vitdiff_jax.experiment.defaults import CHANGEABLE

LOADED = ("data", "latent", "model", "sample.grid", "sample.ema", "sample.ema_width",
          "sample.guide_with")  # fmt: skip
"""What every use of a trained model depends on, of the changeable keys."""
USES = {  # mode -> the changeable keys and sections that it uses; not here: all, or none are taken
    "sample": (*LOADED, "sample"),
    "restore": (
        *LOADED, "restore", "sample.guidance", "sample.guidance_low", "sample.guidance_high",
        "sample.guidance_channels", "sample.guidance_rescale",
    ),
    "evaluate": (*LOADED, "sample", "evaluate", "parallel.data_threads"),
    "statistics": (
        "data", "latent", "evaluate.metrics", "evaluate.inception", "parallel.data_threads"
    ),
    "prepare": ("data", "latent"),
    "plan": ("data", "latent", "model", "optimizer", "parallel", "train"),
}  # fmt: skip
"""`train` and `export` keep the whole config, for later."""
BENCHMARK = ("tasks", "methods", "images", "metrics", "noise_std")
"""Of config.restore, what `restore` uses without --input."""
UNTRAINED = ("statistics", "prepare")
"""Modes that use no model: keys of the model and its training do not matter to them either."""


def unused(mode: str, overrides: Sequence[str], given: Mapping[str, Any]) -> str | None:
    """A line that names the keys among command-line arguments that a mode does not use, or None.

    given: the mode's flags. Where a mode uses a trained model, only changeable keys are named:
    others are compared.
    """
    if mode not in USES:
        return None
    keys = _keys(overrides)
    asked = [key for key in keys if mode in UNTRAINED or _in(key, CHANGEABLE)]
    of_others = [f"restore.{key}" for key in BENCHMARK] if given.get("input") else []
    names = [f"config.{key}" for key in asked if key in of_others or not _in(key, USES[mode])]
    how = f"--mode={mode}{' with --input' if of_others else ''}"
    return f"warning: {how} does not use {', '.join(names)}" if names else None


def without_effect(mode: str, config: ConfigDict, overrides: Sequence[str]) -> Iterator[str]:
    """Lines that name given keys that other values of the config make meaningless."""
    guided = config.sample.guidance != 1 or config.evaluate.sweep.guidance
    pixels = None if config.latent.factor > 1 else "latent.factor=1"
    reasons = {
        "sample.guidance_": None if guided else "sample.guidance=1",
        "sample.threshold_quantile": None
        if config.sample.threshold == "dynamic"
        else f"sample.threshold={config.sample.threshold}",
        "latent.autoencoder": pixels,
        "latent.path": pixels,
    }
    for key in _keys(overrides):
        for start, reason in reasons.items():
            if reason and key.startswith(start) and _in(key, USES.get(mode, (key,))):
                yield f"warning: config.{key} has no effect with config.{reason}"


def _keys(overrides: Sequence[str]) -> list[str]:
    """The config keys among command-line arguments, each once."""
    flags = (argument[2:].partition("=")[0] for argument in overrides if argument[:2] == "--")
    return list(dict.fromkeys(flag.removeprefix("config.") for flag in flags))


def _in(key: str, sections: Sequence[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)
