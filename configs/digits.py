"""A class-conditional ViT on scikit-learn's 8x8 digits: a complete run in about two minutes.

python -m vitdiff_jax.main --config=configs/digits.py
"""

from typing import Any


def get_config(variant=""):
    """JiT's recipe (arXiv:2511.13720) with a tiny network and more low noise.

    Variant "one_step": average velocities, for one network call an image, see docs/one_step.md.
    At JiT's timestep distribution (logit mean 0.8, std 0.8) it learns so little below t = 0.1 that
    it adds noise there, and samples get worse with more steps, see docs/generation.md.
    """
    if variant not in ("", "one_step"):
        raise ValueError(f"no variant {variant!r}, only one_step")
    config: dict[str, Any] = dict(
        data=dict(name="digits"),
        model=dict(
            name="vit", patch=2, width=64, depth=4, heads=4, bottleneck=16,
            class_tokens=4, class_tokens_from=1,
        ),
        diffusion=dict(
            schedule=dict(name="RectifiedFlow"),
            prediction="x",
            loss_space="u",
            times=dict(name="logit_normal", mean=0.0, std=1.0),
            label_dropout=0.1,
        ),
        optimizer=dict(learning_rate=3e-3, warmup=100, decay="cosine", clip=1.0),
        train=dict(steps=2000, batch=64, ema=(0.999, 0.99)),
        checkpoint=dict(every=500, keep=2),
        log=dict(every=100, sample_every=500, heldout_every=500, images=100),
        sample=dict(sampler=dict(name="heun"), steps=25, batch=1000),
        evaluate=dict(metrics=("class_accuracy", "pixel_frechet"), images=5000),
    )  # fmt: skip
    if variant == "one_step":
        config["model"] |= dict(interval=True)
        config["diffusion"] |= dict(average_velocity=dict(share=0.5, guidance=1.2))
        config["sample"] |= dict(sampler=dict(name="average_velocity"), steps=1)
    return config
