"""Keys that are given, and that another key of the same config makes meaningless."""

import pytest

from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment import usage


@pytest.mark.parametrize(
    ("mode", "given", "said"),
    [
        ("sample", ["sample.guidance_low=0.2"], "sample.guidance_low has no effect with config.sa"),
        ("sample", ["sample.guidance_low=0.2", "sample.guidance=2.0"], ""),
        ("evaluate", ["sample.guidance_high=0.9", "evaluate.sweep.guidance=(1.0,2.0)"], ""),
        ("restore", ["sample.guidance_rescale=0.5"], "sample.guidance_rescale has no effect with"),
        ("restore", ["sample.threshold_quantile=0.9"], ""),  # another line says it
        (
            "sample",
            ["sample.threshold_quantile=0.9"],
            "has no effect with config.sample.threshold=",
        ),
        ("sample", ["sample.threshold_quantile=0.9", "sample.threshold=dynamic"], ""),
        (
            "sample",
            ["latent.autoencoder=a.safetensors"],
            "has no effect with config.latent.factor=",
        ),
        ("prepare", ["latent.path=latents", "latent.factor=8"], ""),
        (
            "prepare",
            ["latent.path=latents"],
            "config.latent.path has no effect with config.latent.",
        ),
        ("train", ["latent.path=latents"], "config.latent.path has no effect with config.latent."),
        ("train", ["latent.factor=1", "sample.steps=3"], ""),
    ],
)
def test_a_key_without_effect_is_said(mode, given, said):
    overrides = [f"--config.{one}" for one in given]
    found = list(usage.without_effect(mode, config_lib.complete({}, overrides), overrides))
    if said:
        assert said in found[0]
        assert len(found) == 1
    else:
        assert not found
