"""U-ViT-S/4 on CelebA at 64 px, unconditional, as published (arXiv:2209.12152).

    python -m vitdiff_jax.main --config=configs/celeba.py --mode=prepare [--manual=FOLDER]
    python -m vitdiff_jax.main --config=configs/uvit.py --workdir=runs/uvit

The published result is FID 2.87 after 500,000 steps. The attributes of the data set are always
dropped (label_dropout=1). Not yet run; hardware and hours: not yet measured.
"""


def get_config():
    """The authors' continuous VP-SDE, noise prediction, optimiser and 1000 Euler-Maruyama steps."""
    return dict(
        data=dict(name="celeba", size=64, crop="128"),
        model=dict(name="uvit", size="S", patch=4, dtype="bfloat16"),
        diffusion=dict(
            schedule=dict(name="LinearVP", time_scale=999.0),
            prediction="eps",
            loss_space="eps",
            times=dict(name="uniform"),
            stratified=False,
            label_dropout=1.0,
        ),
        optimizer=dict(learning_rate=2e-4, warmup=5000, b1=0.99, b2=0.99, weight_decay=0.03),
        train=dict(steps=500_000, batch=128, ema=(0.9999,)),
        parallel=dict(data_threads=8),
        checkpoint=dict(every=5000, keep=2, keep_every=50_000),
        log=dict(every=100, sample_every=10_000, heldout_every=5000, images=64),
        sample=dict(sampler=dict(name="euler_maruyama"), steps=1000, batch=500),
        evaluate=dict(metrics=("fid",), images=50_000, reference="train"),
    )
