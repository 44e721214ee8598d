"""A convolutional U-Net with EDM's preconditioning on Fashion-MNIST (arXiv:2206.00364).

    python -m vitdiff_jax.main --config=configs/fashion_mnist.py --mode=prepare
    python -m vitdiff_jax.main --config=configs/edm.py

The process only depends on `config.diffusion`, so any denoiser can be used:
--config.model.name=vit or dit. Not yet run at full length.
"""


def get_config():
    """EDM's noise distribution, loss weighting, grid and 18 Heun steps; two EMAs as in EDM2."""
    return dict(
        data=dict(name="fashion_mnist"),
        model=dict(name="unet", width=32, multipliers=(1, 2, 2), attention=(2,)),
        diffusion=dict(
            schedule=dict(name="EDM"),
            prediction="edm",
            loss_space="edm",
            times=dict(name="edm_lognormal"),
            label_dropout=0.1,
        ),
        optimizer=dict(learning_rate=1e-3, warmup=300, b1=0.9, b2=0.999, clip=1.0),
        train=dict(steps=7000, batch=64, ema=(0.999,), ema_widths=(0.05, 0.10)),
        checkpoint=dict(every=500, keep=2, keep_every=500),
        log=dict(every=100, sample_every=2000, heldout_every=1000, images=100),
        sample=dict(sampler=dict(name="heun"), grid=dict(name="edm_rho"), steps=18, batch=500),
        evaluate=dict(metrics=("classifier",), images=5000),
    )
