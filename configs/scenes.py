"""An unconditional ViT on 32 px patches of colour photographs: a prior to restore others with.

python -m vitdiff_jax.main --config=configs/scenes.py

Needs no download. Variant "small" is for a first look on a laptop.
"""


def get_config(variant=""):
    """JiT's recipe (arXiv:2511.13720) in small, with times for restoring.

    JiT's times (logit mean 0.8, std 0.8) dwell on high noise, where a picture is composed. Here the
    degraded picture says what is in it, and a restorer needs E[x | x_t] most at middle and low
    noise, where edges and textures are settled: mean 0, std 1 puts 8 % of the times below t = 0.2,
    where JiT's have 0.3 %, and the loss on u weighs errors of x by 1 / t^2. The bottleneck is as
    wide as a patch, 4 x 4 x 3, so that fine detail passes.

    Measured: 44 minutes on one CPU core; held-out loss 0.072. What it restores:
    docs/restoration.md.

    No metric of samples: the held-out scenes show other things, so that a Fréchet distance would
    measure which scenes those are. The held-out loss and what the model restores judge it.
    """
    if variant not in ("", "small"):
        raise ValueError(f"no variant {variant!r}, only small")
    small = variant == "small"
    return dict(
        data=dict(name="scenes", size=32),
        model=dict(
            name="vit", patch=4, width=96 if small else 160, depth=4 if small else 6,
            heads=3 if small else 5, bottleneck=48, class_tokens=0,
        ),
        diffusion=dict(
            schedule=dict(name="RectifiedFlow"),
            prediction="x",
            loss_space="u",
            times=dict(name="logit_normal", mean=0.0, std=1.0),
        ),
        optimizer=dict(learning_rate=1.5e-3, warmup=300, decay="cosine", clip=1.0),
        train=dict(steps=500 if small else 4200, batch=64, ema=(0.999,)),
        checkpoint=dict(every=700, keep=2),
        log=dict(every=100, sample_every=1400, heldout_every=700, images=64),
        sample=dict(sampler=dict(name="heun"), steps=25, batch=256),
    )  # fmt: skip
