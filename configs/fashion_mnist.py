"""A class-conditional ViT on Fashion-MNIST, 28x28 pixels.

python -m vitdiff_jax.main --config=configs/fashion_mnist.py --mode=prepare [--manual=FOLDER]
python -m vitdiff_jax.main --config=configs/fashion_mnist.py
"""

from typing import Any


def get_config(variant=""):
    """JiT's recipe (arXiv:2511.13720), scaled down; Muon, more low noise, a stochastic sampler.

    Variants: "six_minutes" on two CPU cores; "small", a smaller network for a first try;
    "one_step", average velocities for one network call an image (not yet run).
    """
    steps = {"": 8000, "six_minutes": 900, "small": 300, "one_step": 3000}
    if variant not in steps:
        raise ValueError(f"no variant {variant!r}, only {', '.join(filter(None, steps))}")
    small = variant == "small"
    config: dict[str, Any] = dict(
        data=dict(name="fashion_mnist", padding=0, cache=True),
        model=dict(
            name="vit", patch=4, width=96 if small else 128, depth=4 if small else 6,
            heads=3 if small else 4, bottleneck=16, class_tokens=4, class_tokens_from=2,
        ),
        diffusion=dict(
            schedule=dict(name="RectifiedFlow"),
            prediction="x",
            loss_space="u",
            times=dict(name="logit_normal", mean=0.4, std=1.0),
            # Otherwise low noise would dominate the loss, at the expense of the classes.
            min_snr=5.0,
            label_dropout=0.1,
        ),
        optimizer=dict(
            name="muon", learning_rate=1.2e-2 if variant else 8e-3, warmup=50 if variant else 300,
            decay="cosine", clip=1.0,
        ),
        train=dict(steps=steps[variant], batch=64, ema=(0.999, 0.99)),
        parallel=dict(data_threads=2),
        checkpoint=dict(every=1000, keep=2),
        log=dict(every=100, sample_every=2000, heldout_every=2000, images=100),
        # Its noise removes the grid of the patches, see docs/generation.md.
        sample=dict(sampler=dict(name="edm_stochastic"), steps=12, batch=500),
        evaluate=dict(
            metrics=("classifier", "patch_grid"), images=1000 if small else 5000
        ),
    )  # fmt: skip
    if variant == "one_step":
        config["model"] |= dict(interval=True)
        config["diffusion"] |= dict(min_snr=0.0, average_velocity=dict(share=0.5, guidance=1.2))
        config["sample"] |= dict(sampler=dict(name="average_velocity"), steps=1)
    return config
