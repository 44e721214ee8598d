"""An unconditional ViT on 64 px crops of colour photographs: a prior for image restoration.

    python -m vitdiff_jax.data.photographs photographs
    python -m vitdiff_jax.main --config=configs/photos.py

The first line gathers 66 photographs, of Debian's packages, scikit-image and scikit-learn; any
folder with subfolders `train` and `heldout` will do as `config.data.path`.
"""


def get_config():
    """EDM's preconditioning and noise levels (arXiv:2206.00364) on rectified flow's schedule.

    Restoration needs E[x | x_t] at low noise, where a network that predicts x has to learn to copy
    its input first: after 50 s of training on one core its PSNR at t = 0.02 was 22 dB, with
    preconditioning 38.5 dB (the noise itself: 40 dB).

    The noise levels were chosen by held-out PSNR. After 600 steps of a smaller network (width 128,
    depth 4), E[x | x_t] at sigma / alpha = 0.02, 0.1, 0.33, 1 and 3 has 42.2, 32.4, 26.1, 23.7 and
    21.1 dB for log-normal levels of mean -1.4 and std 1.4; 42.5, 32.0, 25.4, 22.8 and 19.5 for mean
    -2.2; 41.9, 31.5, 25.0, 22.9 and 20.8 for mean -1.8 and std 1.8 (2026-12-01).
    """
    return dict(
        data=dict(name="photographs", size=64, path="photographs"),
        model=dict(
            name="vit", patch=4, width=192, depth=6, heads=6, bottleneck=48, class_tokens=0,
        ),
        diffusion=dict(
            schedule=dict(name="RectifiedFlow"),
            prediction="edm",
            loss_space="edm",
            times=dict(name="edm_lognormal", mean=-1.4, std=1.4),
        ),
        optimizer=dict(learning_rate=1e-3, warmup=300, clip=1.0),
        train=dict(steps=12000, batch=16, ema=(0.999,)),
        checkpoint=dict(every=250, keep=2),
        log=dict(every=50, sample_every=2000, heldout_every=1000, images=16),
        sample=dict(
            sampler=dict(name="heun"), steps=25, batch=64, grid=dict(name="shifted", shift=0.3)
        ),
        restore=dict(steps=20),
    )  # fmt: skip
