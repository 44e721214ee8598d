"""ViT-S/4 on CelebA at 64 px, conditioned on 40 attributes.

    python -m vitdiff_jax.main --config=configs/celeba.py --mode=prepare [--manual=FOLDER]
    python -m vitdiff_jax.main --config=configs/celeba.py --workdir=runs/celeba
    python -m vitdiff_jax.main --workdir=runs/celeba --mode=sample --attributes="Smiling,-Male"

TFDS downloads the files that FOLDER does not have, unless the Google Drive quota is exceeded: then
put the files from CelebA's home page into FOLDER. The crop is that of U-ViT-S/4, whose
unconditional model reaches FID 2.87 after 500,000 steps of 128 (arXiv:2209.12152). Not yet run;
hardware and hours: not yet measured. celeba.py:small is for a laptop, not yet run.
"""

from typing import Any


def get_config(variant=""):
    """JiT's recipe (arXiv:2511.13720) with U-ViT's batch size, learning rate and steps."""
    if variant not in ("", "small"):
        raise ValueError(f"no variant {variant!r}, only small")
    config: dict[str, Any] = dict(
        data=dict(name="celeba", size=64, crop="128", hide=0.5),
        model=dict(name="vit", size="S", patch=4, bottleneck=48, dtype="bfloat16"),
        diffusion=dict(
            schedule=dict(name="RectifiedFlow"),
            prediction="x",
            loss_space="u",
            times=dict(name="logit_normal", mean=0.8, std=0.8),
            label_dropout=0.1,
        ),
        optimizer=dict(learning_rate=2e-4, warmup=5000, b1=0.9, b2=0.95),
        train=dict(steps=500_000, batch=128, ema=(0.9999,)),
        parallel=dict(data_threads=8),
        checkpoint=dict(every=5000, keep=2, keep_every=50_000),
        log=dict(every=100, sample_every=5000, heldout_every=5000, heldout_images=2048),
        sample=dict(sampler=dict(name="heun"), steps=50, guidance=1.0, batch=500),
        evaluate=dict(metrics=("fid",), images=50_000, reference="train"),
    )
    if variant == "small":
        config["data"] |= dict(cache=True)
        config["model"] = dict(
            name="vit", patch=8, width=192, depth=6, heads=4, bottleneck=64, class_tokens_from=2
        )
        config["optimizer"] |= dict(learning_rate=1e-3, warmup=500)
        config["train"] = dict(steps=20_000, batch=64, ema=(0.999,))
        config["parallel"] = dict(data_threads=2)
        config["log"] = dict(every=100, sample_every=1000, heldout_every=1000, heldout_images=256)
        config["sample"] |= dict(steps=25, batch=64)
        config["evaluate"] |= dict(images=1000)
    return config
