"""Text-to-image: JiT-B/16 on COCO captions at 256 px, in pixel space.

    python -m vitdiff_jax.main --config=configs/coco.py --mode=prepare [--manual=FOLDER]
    python -m vitdiff_jax.main --config=configs/coco.py --workdir=runs/coco
    python -m vitdiff_jax.main --workdir=runs/coco --mode=sample --prompt="a red bus on a street"

TFDS downloads the archives (53 GB) that FOLDER does not have. A small byte-level text encoder is
trained jointly. To use a frozen one instead, prepare and train with
--config.data.text=openai/clip-vit-large-patch14 --config.data.length=77 (extra "text").
U-ViT reaches FID 5.48 with CLIP and latents (arXiv:2209.12152). Not yet run; hardware and hours:
not yet measured. coco.py:small is for a laptop: 64 px, not yet run.
"""

from typing import Any


def get_config(variant=""):
    """JiT's recipe (arXiv:2511.13720) with U-ViT's batch size and number of training images."""
    if variant not in ("", "small"):
        raise ValueError(f"no variant {variant!r}, only small")
    config: dict[str, Any] = dict(
        data=dict(name="coco", version="captions", size=256, text="bytes", length=128),
        model=dict(name="vit", size="B", patch=16, text_width=256, text_depth=4, dtype="bfloat16"),
        diffusion=dict(
            schedule=dict(name="RectifiedFlow"),
            prediction="x",
            loss_space="u",
            times=dict(name="logit_normal", mean=0.8, std=0.8),
            label_dropout=0.1,
        ),
        optimizer=dict(learning_rate=2e-4, warmup=5000, b1=0.9, b2=0.95),
        train=dict(steps=1_000_000, batch=256, ema=(0.9999,)),
        parallel=dict(data_threads=16),
        checkpoint=dict(every=5000, keep=2, keep_every=50_000),
        log=dict(every=100, sample_every=5000, heldout_every=5000, heldout_images=2048),
        sample=dict(
            sampler=dict(name="heun"), steps=50, guidance=3.0, guidance_high=0.9, batch=256
        ),
        evaluate=dict(metrics=("fid",), images=30_000),
    )
    if variant == "small":
        config["data"] |= dict(size=64, cache=True)
        config["model"] = dict(
            name="vit", patch=8, width=256, depth=8, heads=4, bottleneck=64, class_tokens_from=2,
            text_width=128, text_depth=2,
        )  # fmt: skip
        config["optimizer"] |= dict(learning_rate=5e-4, warmup=1000)
        config["train"] = dict(steps=50_000, batch=64, ema=(0.9999,))
        config["parallel"] = dict(data_threads=2)
        config["log"] = dict(every=100, sample_every=1000, heldout_every=1000, heldout_images=256)
        config["sample"] |= dict(steps=25, batch=64)
        config["evaluate"] |= dict(images=1000)
    return config
