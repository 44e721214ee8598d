"""JiT-B/16 on ImageNet at 256 px, class-conditional, in pixel space (arXiv:2511.13720).

    python -m vitdiff_jax.main --config=configs/imagenet.py --workdir=runs/imagenet

The published recipe: 131 million parameters, batch 1024, 200 epochs, FID 4.37 with guidance.
Not yet run here: the data set arrives with a later version, and so does FID.
Hardware and hours: not yet measured.
"""

EPOCH = 1_281_167 / 1024  # steps


def get_config():
    """The authors' settings; their time runs the other way, so t = sigmoid(0.8 n + 0.8)."""
    return dict(
        data=dict(name="imagenet"),
        model=dict(name="vit", size="B", patch=16, dtype="bfloat16"),
        diffusion=dict(
            schedule=dict(name="RectifiedFlow", noise_scale=1.0),
            prediction="x",
            loss_space="u",
            floor=0.05,
            times=dict(name="logit_normal", mean=0.8, std=0.8),
            stratified=False,
            label_dropout=0.1,
        ),
        optimizer=dict(learning_rate=2e-4, warmup=round(5 * EPOCH), b1=0.9, b2=0.95),
        train=dict(steps=round(200 * EPOCH), batch=1024, ema=(0.9999, 0.9996)),
        parallel=dict(data_threads=16),
        checkpoint=dict(every=5000, keep=2, keep_every=50_000),
        log=dict(every=100, sample_every=5000, heldout_every=5000, heldout_images=2048),
        sample=dict(
            sampler=dict(name="heun"),
            grid=dict(name="linear"),
            steps=50,
            guidance=2.9,
            guidance_high=0.9,
            ema=0.9999,
            batch=256,
        ),
    )
