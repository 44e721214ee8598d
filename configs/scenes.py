"""An unconditional ViT on 32 px patches of colour photographs: a prior for image restoration.

python -m vitdiff_jax.main --config=configs/scenes.py

Needs no download. Variant "small" is for a first try on a laptop.
"""


def get_config(variant=""):
    """JiT's recipe (arXiv:2511.13720), scaled down, with a timestep distribution for restoration.

    JiT's distribution (logit mean 0.8, std 0.8) favours high noise, where the composition of an
    image is decided. In restoration the measurement determines the composition, and E[x | x_t]
    matters most at medium and low noise, where edges and textures form: mean 0, std 1 has 8 % of
    the times below t = 0.2, JiT's 0.3 %, and the loss on u weights errors of x by 1 / t^2. The
    bottleneck is as wide as a patch, 4 x 4 x 3, to preserve fine detail.

    Measured: 44 minutes on one CPU core; held-out loss 0.072. For restoration see
    docs/restoration.md.

    There is no metric of samples: the held-out scenes have other content, which would dominate a
    Fréchet distance. The model is evaluated by its held-out loss and by restoration.
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
