"""Vision Transformer diffusion models in JAX: train, sample, restore, evaluate, plan.

    model = vitdiff_jax.load("runs/digits")
    images = model.sample(label=3, n=16, seed=0)             # uint8 [16, H, W, C]
    found = model.restore(image, "inpaint", mask=mask, n=4)  # found.images, found.mean, found.std
    config = vitdiff_jax.load_config("configs/digits.py")    # yours, or one in the package
    vitdiff_jax.fit(config, "runs/mine")

`load` is `vitdiff_jax.inference.loading.load` and returns a
`vitdiff_jax.inference.model.TrainedModel`; `fit` is `vitdiff_jax.training.loop.train`,
`load_config` is `vitdiff_jax.experiment.config.load`. They are imported on first use, which
keeps `import vitdiff_jax` fast. The command line is `vitdiff_jax.main`.

| looking for | see |
| --- | --- |
| the flags of a mode | `main` of its module in `vitdiff_jax.modes` |
| the keys of a config | the source of `vitdiff_jax.experiment.defaults` |
| a data set | `vitdiff_jax.data.pipeline.Dataset`; each is a file of `vitdiff_jax.data` |
| a denoiser | `vitdiff_jax.models`, such as `vitdiff_jax.models.vit` |
| the diffusion process: schedules, parameterisations, timesteps | `vitdiff_jax.diffusion.process` |
| a sampler | `vitdiff_jax.samplers` |
| degradation and restoration | `vitdiff_jax.operators`, `vitdiff_jax.restoration` |
| a metric | `vitdiff_jax.evaluation.metric` |
| the training step, its sharding | `vitdiff_jax.training.step`, `vitdiff_jax.runtime.parallel` |

Images are float32 [B, H, W, C] in [-1, 1] internally and uint8 at the interface. Throughout, t = 0
is data and t = 1 is noise.
"""

import importlib

__version__ = "0.1.0"
_HOMES = {
    "load": "vitdiff_jax.inference.loading:load",
    "fit": "vitdiff_jax.training.loop:train",
    "load_config": "vitdiff_jax.experiment.config:load",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
