"""ViT-B/4 on ImageNet at 64 px, class-conditional, in pixel space.

    python -m vitdiff_jax.main --config=configs/imagenet64.py --mode=prepare --manual=FOLDER
    python -m vitdiff_jax.main --config=configs/imagenet64.py --workdir=runs/imagenet64

JiT's recipe (arXiv:2511.13720) at the resolution where U-ViT-L/4 reaches FID 4.26
(arXiv:2209.12152). With --config.data.cache=True, for preparing and training, photographs are
decoded only once (16 GB). Not yet run; hardware and hours: not yet measured. imagenet64.py:small is
for a laptop, not yet run.
"""

from typing import Any

EPOCH = 1_281_167 / 1024  # steps


def get_config(variant=""):
    """As imagenet.py with smaller patches: as many tokens at 64 px as there at 256 px."""
    if variant not in ("", "small"):
        raise ValueError(f"no variant {variant!r}, only small")
    config: dict[str, Any] = dict(
        data=dict(name="imagenet", size=64),
        model=dict(name="vit", size="B", patch=4, bottleneck=48, dtype="bfloat16"),
        diffusion=dict(
            schedule=dict(name="RectifiedFlow"),
            prediction="x",
            loss_space="u",
            times=dict(name="logit_normal", mean=0.8, std=0.8),
            label_dropout=0.1,
        ),
        optimizer=dict(learning_rate=2e-4, warmup=round(5 * EPOCH), b1=0.9, b2=0.95),
        train=dict(steps=round(200 * EPOCH), batch=1024, ema=(0.9999, 0.9996)),
        parallel=dict(data_threads=16),
        checkpoint=dict(every=5000, keep=2, keep_every=50_000),
        log=dict(every=100, sample_every=5000, heldout_every=5000, heldout_images=2048),
        sample=dict(
            sampler=dict(name="heun"), steps=50, guidance=2.0, guidance_high=0.9, batch=500
        ),
        evaluate=dict(
            metrics=("fid", "sfid", "inception_score", "precision_recall"),
            images=50_000,
            reference="train",
        ),
    )
    if variant == "small":
        config["data"] |= dict(cache=True)
        config["model"] = dict(
            name="vit", patch=8, width=256, depth=6, heads=4, bottleneck=64, class_tokens_from=2
        )
        config["optimizer"] |= dict(learning_rate=5e-4, warmup=1000)
        config["train"] = dict(steps=50_000, batch=64, ema=(0.9999,))
        config["parallel"] = dict(data_threads=2)
        config["log"] = dict(every=100, sample_every=1000, heldout_every=1000, heldout_images=256)
        config["sample"] |= dict(steps=25, batch=64)
        config["evaluate"] |= dict(images=1000)
    return config
