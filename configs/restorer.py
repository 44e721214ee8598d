"""A ViT trained to restore: it samples images conditioned on the degraded one (Palette).

python -m vitdiff_jax.main --config=configs/restorer.py
python -m vitdiff_jax.main --config=configs/restorer.py --mode=sample --n=48

Needs no download. For your own photographs add --config.data.name=folder --config.data.path=FOLDER
and --config.data.size=64. Any other config can be made a restorer by
--config.degradation.operators="('mask:kind=strokes','downsample:factor=2')".

Variant "small" is for a first try on a laptop.
"""


def get_config(variant=""):
    """Ten degradations (four in arXiv:2111.05826) of 32 px patches of the photographs of scenes.py.

    One model for all of them, conditioned on the degraded image but not on its degradation. The
    noise is random up to 0.2, that of a bad photograph, so that it also learns to preserve clean
    images. Guidance is not needed: the hint is nearly sufficient, and condition dropout would slow
    training.

    Measured: 57 minutes on two CPU cores beside other work. It restores worse than scenes.py with
    DDRM in the same number of steps (docs/restoration.md).
    """
    if variant not in ("", "small"):
        raise ValueError(f"no variant {variant!r}, only small")
    small = variant == "small"
    return dict(
        data=dict(name="scenes", size=32),
        degradation=dict(
            operators=(
                "denoise", "mask:kind=box,margin=0.0", "mask:kind=random", "mask:kind=strokes",
                "downsample:factor=2", "downsample:factor=4", "colourise",
                "blur:kind=gaussian,size=9,std=1.5", "blur:kind=motion,size=9", "jpeg:quality=20",
            ),
            noise=0.2,
            bank=16 if small else 256,
        ),
        model=dict(
            name="vit", patch=4, width=96 if small else 160, depth=4 if small else 6,
            heads=3 if small else 5, bottleneck=96, class_tokens=0,
        ),
        diffusion=dict(
            schedule=dict(name="RectifiedFlow"),
            prediction="x",
            loss_space="u",
            times=dict(name="logit_normal", mean=0.0, std=1.0),
            label_dropout=0.0,
        ),
        optimizer=dict(learning_rate=1.5e-3, warmup=300, decay="cosine", clip=1.0),
        train=dict(steps=500 if small else 4500, batch=64, ema=(0.999,)),
        checkpoint=dict(every=500, keep=2),
        log=dict(every=100, sample_every=1500, heldout_every=500, images=48),
        sample=dict(sampler=dict(name="heun"), steps=25, batch=256),
    )  # fmt: skip
