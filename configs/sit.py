"""SiT-XL/2 on latents of ImageNet at 256 px: DiT with velocity prediction (arXiv:2401.08740).

    python -m vitdiff_jax.main --config=configs/sit.py --workdir=runs/sit \
        --config.latent.autoencoder=FILE --config.latent.path=LATENTS

Prepare the data as in dit.py. The published result is FID 2.06 with guidance 1.5 after 7 million
steps. sit.py:gvp uses the trigonometric path. Not yet run; hardware and hours: not yet measured.
"""

from typing import Any


def get_config(variant=""):
    """The authors' linear path, velocity prediction, optimiser and SDE sampler."""
    if variant not in ("", "gvp"):
        raise ValueError(f"no variant {variant!r}, only gvp")
    config: dict[str, Any] = dict(
        data=dict(name="imagenet", size=256),
        latent=dict(factor=8),
        model=dict(name="dit", size="XL", patch=2, dtype="bfloat16", remat="dots"),
        diffusion=dict(
            schedule=dict(name="GVP" if variant else "RectifiedFlow"),
            prediction="u",
            loss_space="u",
            times=dict(name="uniform"),
            stratified=False,
            label_dropout=0.1,
        ),
        optimizer=dict(learning_rate=1e-4, b1=0.9, b2=0.999),
        train=dict(steps=400_000, batch=256, ema=(0.9999,)),
        parallel=dict(data_threads=8),
        checkpoint=dict(every=5000, keep=2, keep_every=50_000),
        log=dict(every=100, sample_every=10_000, heldout_every=5000, images=32),
        sample=dict(sampler=dict(name="euler_maruyama"), steps=250, guidance=1.5, batch=256),
        evaluate=dict(
            metrics=("fid", "sfid", "inception_score", "precision_recall"),
            images=50_000,
            reference="train",
        ),
    )
    return config
