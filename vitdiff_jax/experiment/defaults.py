"""Every config key, with its default and meaning.

A dict with a "name" selects a component (see `config`); its other keys are the component's options.
"""

from typing import Any

from ml_collections import config_dict

CHANGEABLE = (
    "sample", "evaluate", "restore", "log", "checkpoint", "parallel", "optimizer.learning_rate",
    "optimizer.warmup", "optimizer.decay", "optimizer.b1", "optimizer.b2", "optimizer.eps",
    "optimizer.weight_decay", "optimizer.clip", "train.steps", "train.accumulate",
    "train.gradient_dtype", "train.max_bad_steps", "model.dtype", "model.attention",
    "data.data_dir", "data.path", "data.cache", "latent.autoencoder", "latent.path",
)  # fmt: skip
"""Keys and sections that a resumed run may change: they do not affect what was learned so far."""
LEARNING = ("optimizer", "train.gradient_dtype", "model.dtype")
"""Those of them that affect what is learned from then on."""


def defaults() -> dict[str, Any]:
    """All keys except the options of the components and of the diffusion process."""
    return dict(
        seed=0,  # for the initial parameters, the data order and all noise
        data=dict(name="digits"),
        latent=dict(  # latent diffusion
            factor=1,  # downsampling factor of the autoencoder; 1: pixel space
            autoencoder=config_dict.placeholder(str),  # weights file of diffusers' AutoencoderKL
            path=config_dict.placeholder(str),  # folder of the latents that --mode=prepare writes
        ),
        model=dict(name="vit"),
        diffusion=dict(
            schedule=dict(name="RectifiedFlow"),
            # prediction, loss_space, ...: see `diffusion.process.Process`
            # average_velocity, for one network call an image: see `diffusion.average_velocity`
            times=dict(name="logit_normal"),  # the timestep distribution
            stratified=True,  # stratify t over each batch, to reduce the variance of the loss
            label_dropout=0.1,  # probability of a null condition, for classifier-free guidance
        ),
        degradation=dict(  # train a restoration model, conditioned on degraded images
            operators=(),  # chosen uniformly; syntax: see `operators.parsing`; empty: none
            noise=0.1,  # noise std is uniform in [0, noise], in units of [-1, 1]
            bank=64,  # instances of each random operator (masks, motion kernels, ...)
        ),
        optimizer=dict(
            name="adamw",  # or muon: for hidden matrices, AdamW for all else; see `training.muon`
            learning_rate=1e-4,  # peak, reached after warm-up
            warmup=0,  # steps of linear warm-up
            decay="constant",  # after warm-up: constant, or cosine (to 0 at train.steps)
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            weight_decay=0.0,  # on weight matrices only
            clip=0.0,  # maximum global gradient norm; 0: no clipping
        ),
        train=dict(
            steps=100_000,
            batch=256,  # global batch size
            # gradient accumulation: microbatches per step. (DiT-XL as below, 2: MFU 0.587)
            accumulate=1,
            # or bfloat16, if model.dtype is: halves gradient communication. (Compiler's estimate,
            # DiT-XL on v5e:2x2, 32 images per chip: MFU with communication 0.679, float32 0.627.)
            gradient_dtype="float32",
            ema=(0.9999,),  # EMA decays, each with warm-up
            ema_widths=(),  # relative widths of power-function EMAs (EDM2): see sample.ema_width
            init_from=config_dict.placeholder(str),  # a workdir or pretrained:NAME, to fine-tune
            frechet=dict(  # post-train a generator of one network call, see `training.frechet`
                spaces=(),  # feature spaces: modules of vitdiff_jax/evaluation; empty: none
                decay=0.99,  # of the moments of generated images, per step
                images=10_000,  # generated images in the first moments
            ),
            max_bad_steps=10,  # stop after this many consecutive non-finite losses or gradients
        ),
        parallel=dict(
            compiler="jit",  # or pmap
            # number of devices over which FSDP shards parameters, optimiser state and EMAs. (Same
            # model, MFU with communication and memory per chip: fsdp=4 0.662, 9.6 GiB; zero1 0.679,
            # 10.4 GiB; neither 0.564, 15.4 GiB.)
            fsdp=1,
            zero1=False,  # shard the training state over all devices (ZeRO-1, arXiv:1910.02054)
            data_threads=1,  # threads that read and decode images, per process
        ),
        checkpoint=dict(
            every=1000,  # steps between checkpoints
            keep=3,  # number of latest checkpoints to keep
            keep_every=0,  # also keep every checkpoint at a multiple of this step; 0: none
        ),
        log=dict(
            every=100,  # steps between log lines
            sample_every=1000,  # steps between sample grids; 0: never
            heldout_every=1000,  # steps between held-out losses; 0: never
            heldout_images=512,  # images in the held-out loss
            heldout_levels=5,  # its noise levels, at even quantiles of the timestep distribution
            images=64,  # images in a sample grid
            nearest_every=0,  # steps between checks for memorised training images; 0: never
            evaluate_every=0,  # steps between evaluations of every EMA; 0: never
            evaluate_images=2048,  # samples in such an evaluation
        ),
        sample=dict(
            sampler=dict(name="heun"),
            grid=dict(name="linear"),  # time discretisation
            steps=50,
            guidance=1.0,  # guidance scale; 1: no guidance
            guidance_low=0.0,  # guidance interval: guidance_low < t < guidance_high
            guidance_high=1.0,
            guidance_channels=0,  # guide only the first channels (DiT: 3); 0: all
            guidance_rescale=0.0,  # CFG rescale (arXiv:2305.08891), in [0, 1]; 0: none
            guide_with=config_dict.placeholder(str),  # autoguidance: workdir of a weaker model that
            # replaces the unconditional prediction
            threshold="none",  # thresholding of the x prediction: none, static or dynamic
            threshold_quantile=0.995,  # for dynamic thresholding
            ema=config_dict.placeholder(float),  # one of train.ema; None: the first
            ema_width=config_dict.placeholder(float),  # or a post-hoc EMA of any width (EDM2), made
            # from the train.ema_widths in all checkpoints kept by checkpoint.keep_every
            batch=256,  # images per batch
        ),
        restore=dict(
            steps=100,  # sampling steps, on sample.grid
            batch=64,  # images per batch
            tiles=0,  # tiles per network call, for images larger than the model's; 0: what memory
            # and caches hold
            overlap=0.0,  # minimum overlap of neighbouring tiles, as a fraction of a tile; 0: tiles
            # side by side that lie elsewhere in each call
            tasks=(),  # benchmark tasks, in the syntax of --task
            methods=(),  # benchmark methods, in the syntax of --method; empty: all applicable ones
            images=64,  # held-out images in the benchmark
            metrics=("psnr", "ssim"),  # paired metrics: modules of vitdiff_jax/evaluation
            noise_std=config_dict.placeholder(float),  # in [-1, 1] units; None: the preset's, or 0
        ),
        evaluate=dict(
            metrics=(),  # modules of vitdiff_jax/evaluation
            images=5000,  # number of samples
            seed=1_000_000,  # image i is sampled with seed evaluate.seed + i
            labels="balanced",  # class labels in turn; or prior: those of the held-out images
            reference="heldout",  # or train, or a file of --mode=statistics, ADM, torch-fidelity
            inception=config_dict.placeholder(str),  # FID's Inception weights; None: download
            sweep=dict(  # evaluates all combinations; empty: the value in config.sample
                guidance=(), interval=(),  # guidance intervals: pairs (low, high) of t
                ema=(), ema_width=(), sampler=(), steps=(),
            ),
        ),
    )  # fmt: skip
