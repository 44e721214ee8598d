"""Your own images: a folder or zip file, with subfolders as classes or a captions file.

    python -m vitdiff_jax.main --config=configs/folder.py --config.data.path=PHOTOS
    python -m vitdiff_jax.main --config=configs/folder.py:small --config.data.path=PHOTOS

Images may have any size and format; PHOTOS is not modified. Captions are read with
--config.data.captions=metadata.jsonl. At 256 px the model is JiT-B/16 with its recipe
(arXiv:2511.13720), for a GPU or TPU; for few images use fewer steps and more dropout, and check the
nearest training images in samples/ for memorisation. Not yet run at full length. folder.py:small is
for a laptop: 64 px.
"""

from typing import Any


def get_config(variant=""):
    """Regularised for a few thousand images."""
    if variant not in ("", "small"):
        raise ValueError(f"no variant {variant!r}, only small")
    config: dict[str, Any] = dict(
        data=dict(name="folder", size=256),
        model=dict(name="vit", size="B", patch=16, dropout=0.1, dtype="bfloat16"),
        diffusion=dict(
            schedule=dict(name="RectifiedFlow"),
            prediction="x",
            loss_space="u",
            times=dict(name="logit_normal", mean=0.8, std=0.8),
            label_dropout=0.1,
        ),
        optimizer=dict(learning_rate=1e-4, warmup=1000, b1=0.9, b2=0.95, clip=1.0),
        train=dict(steps=100_000, batch=128, ema=(0.9999,)),
        parallel=dict(data_threads=8),
        checkpoint=dict(every=2000, keep=2, keep_every=20_000),
        log=dict(
            every=100, sample_every=2000, heldout_every=2000, heldout_images=256, images=64,
            nearest_every=10_000,
        ),
        sample=dict(sampler=dict(name="heun"), steps=50, guidance=1.5, guidance_high=0.9, batch=64),
        evaluate=dict(metrics=("kid", "fid"), images=1000, reference="train"),
    )  # fmt: skip
    if variant == "small":
        config["data"] |= dict(size=64, cache=True)
        config["model"] = dict(
            name="vit", patch=8, width=192, depth=6, heads=4, bottleneck=64, class_tokens_from=2,
            dropout=0.1, text_width=128, text_depth=2,
        )  # fmt: skip
        config["optimizer"] |= dict(learning_rate=1e-3, warmup=200)
        config["train"] = dict(steps=5000, batch=32, ema=(0.999,))
        config["parallel"] = dict(data_threads=2)
        config["log"] |= dict(
            sample_every=500, heldout_every=500, heldout_images=64, images=16, nearest_every=1000
        )
        config["sample"] |= dict(steps=25)
    return config
