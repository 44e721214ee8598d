"""DiT-XL/2 on latents of ImageNet at 256 px, as published (arXiv:2212.09748).

    python -m vitdiff_jax.main --config=configs/dit.py --mode=prepare --manual=FOLDER \
        --config.latent.autoencoder=FILE --config.latent.path=LATENTS
    python -m vitdiff_jax.main --config=configs/dit.py --workdir=runs/dit \
        --config.latent.autoencoder=FILE --config.latent.path=LATENTS

FILE is Stable Diffusion's autoencoder in diffusers' format, sd-vae-ft-ema. The published result is
FID 2.27 with guidance 1.5 after 7 million steps. dit.py:S, :B and :L are the smaller models,
dit.py:pixels is a small one for Fashion-MNIST at 32 px, without latents. Not yet run, except for
the first steps of the last one; hardware and hours: not yet measured.
"""

from typing import Any

SIZES = ("XL", "L", "B", "S")


def get_config(variant="XL"):
    """The authors' process, loss, optimiser and sampler, with guidance on three channels."""
    if variant not in (*SIZES, "pixels"):
        raise ValueError(f"no variant {variant!r}, only {', '.join(SIZES)}, pixels")
    config: dict[str, Any] = dict(
        data=dict(name="imagenet", size=256),
        latent=dict(factor=8),
        model=dict(
            name="dit", size=variant, patch=2, learned_sigma=True, dtype="bfloat16"
        ),
        diffusion=dict(
            schedule=dict(name="DiscreteVP"),
            prediction="eps",
            loss_space="eps",
            times=dict(name="discrete"),
            stratified=False,
            learned_variance=1000,
            label_dropout=0.1,
        ),
        optimizer=dict(learning_rate=1e-4, b1=0.9, b2=0.999),
        train=dict(steps=400_000, batch=256, ema=(0.9999,)),
        parallel=dict(data_threads=8, zero1=True),
        checkpoint=dict(every=5000, keep=2, keep_every=50_000),
        log=dict(every=100, sample_every=10_000, heldout_every=5000, images=32),
        sample=dict(
            sampler=dict(name="ancestral_learned"), grid=dict(name="respaced"), steps=250,
            guidance=1.5, guidance_channels=3, batch=256,
        ),
        evaluate=dict(
            metrics=("fid", "sfid", "inception_score", "precision_recall"),
            images=50_000,
            reference="train",
        ),
    )  # fmt: skip
    if variant == "pixels":
        config["data"] = dict(name="fashion_mnist")
        config["latent"] = dict(factor=1)
        config["model"] = dict(name="dit", patch=4, width=160, depth=6, heads=5, learned_sigma=True)
        config["optimizer"] = dict(learning_rate=1e-3, warmup=300, decay="cosine", clip=1.0)
        config["train"] = dict(steps=7000, batch=64, ema=(0.999,))
        config["parallel"] = dict(data_threads=1)
        config["log"] = dict(every=100, sample_every=2000, heldout_every=1000, images=100)
        config["sample"] |= dict(steps=100, guidance=1.0, guidance_channels=0)
        config["evaluate"] = dict(metrics=("classifier",), images=5000)
    return config
