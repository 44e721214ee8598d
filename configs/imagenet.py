"""JiT-B/16 on ImageNet at 256 px, class-conditional, in pixel space (arXiv:2511.13720).

    python -m vitdiff_jax.main --config=configs/imagenet.py --mode=prepare --manual=FOLDER
    python -m vitdiff_jax.main --config=configs/imagenet.py --workdir=runs/imagenet

FOLDER contains ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar. The published recipe: 131
million parameters, batch size 1024, 200 epochs, FID 4.37 with guidance. Not yet run; hardware and
hours: not yet measured. imagenet.py:small is for a laptop: 64 px, 9 million parameters, not yet
run. imagenet.py:one_step makes an image in one network call as pMF-B/16 does (arXiv:2601.22158),
whose FID of 3.1 it should not reach: the weights of its perceptual losses cannot be had, and
guidance is at one scale, in the target, where theirs is an input of the network. Not yet run.
"""

from typing import Any

EPOCH = 1_281_167 / 1024  # steps


def get_config(variant=""):
    """The authors' settings; their time is reversed, so here t = sigmoid(0.8 n + 0.8)."""
    if variant not in ("", "small", "one_step"):
        raise ValueError(f"no variant {variant!r}, only small and one_step")
    config: dict[str, Any] = dict(
        data=dict(name="imagenet", size=256),
        model=dict(name="vit", size="B", patch=16, dtype="bfloat16"),
        diffusion=dict(
            schedule=dict(name="RectifiedFlow", noise_scale=1.0),
            prediction="x",
            loss_space="u",
            floor=0.05,
            times=dict(name="logit_normal", mean=0.8, std=0.8),
            stratified=False,
            label_dropout=0.1,
        ),
        optimizer=dict(learning_rate=2e-4, warmup=round(5 * EPOCH), b1=0.9, b2=0.95),
        train=dict(steps=round(200 * EPOCH), batch=1024, ema=(0.9999, 0.9996)),
        parallel=dict(data_threads=16, zero1=True),
        checkpoint=dict(every=5000, keep=2, keep_every=50_000),
        log=dict(every=100, sample_every=5000, heldout_every=5000, heldout_images=2048),
        sample=dict(
            sampler=dict(name="heun"),
            grid=dict(name="linear"),
            steps=50,
            guidance=2.9,
            guidance_high=0.9,
            ema=0.9999,
            batch=256,
        ),
        evaluate=dict(
            metrics=("fid", "sfid", "inception_score", "precision_recall"),
            images=50_000,
            reference="train",
        ),
    )
    if variant == "one_step":
        config["model"] |= dict(interval=True)
        config["diffusion"] |= dict(average_velocity=dict(share=0.5, guidance=2.9))
        config["optimizer"] = dict(name="muon", learning_rate=1e-3, b1=0.9, b2=0.95)
        config["sample"] |= dict(
            sampler=dict(name="average_velocity"), steps=1, guidance=1.0, guidance_high=1.0
        )
    if variant == "small":
        config["data"] |= dict(size=64, cache=True)
        config["model"] = dict(
            name="vit", patch=8, width=256, depth=8, heads=4, bottleneck=64, class_tokens_from=2
        )
        config["optimizer"] |= dict(learning_rate=5e-4, warmup=1000)
        config["train"] = dict(steps=50_000, batch=64, ema=(0.9999,))
        config["parallel"] = dict(data_threads=2)
        config["log"] = dict(every=100, sample_every=1000, heldout_every=1000, heldout_images=256)
        config["sample"] |= dict(steps=25, batch=64)
        config["evaluate"] |= dict(images=1000)
    return config
