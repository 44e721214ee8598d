"""Train, sample and evaluate Vision Transformer diffusion models in JAX.

    model = vitdiff_jax.load("runs/digits")
    images = model.sample(label=3, n=16, seed=0)     # uint8 [16, H, W, C]
    vitdiff_jax.fit(config, "runs/mine")             # config: a dict or what `load_config` returns

Imported on first use, so that `import vitdiff_jax` is quick.
"""

import importlib

__version__ = "0.1.0"
_HOMES = {
    "load": "vitdiff_jax.trained:load",
    "fit": "vitdiff_jax.train:train",
    "load_config": "vitdiff_jax.config:load",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
