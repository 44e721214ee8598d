"""Every key of a config, its default and its meaning.

A dict with a "name" is a component, see `config`; its other keys are that component's options.
"""

from typing import Any

from ml_collections import config_dict

FREE = (
    "sample", "evaluate", "restore", "log", "checkpoint", "parallel", "train.steps",
    "train.accumulate", "model.dtype", "model.attention", "data.data_dir", "data.path",
    "data.cache", "latent.autoencoder", "latent.path",
)  # fmt: skip
"""What a resumed run may change: these do not alter what has been learned so far."""


def defaults() -> dict[str, Any]:
    """Every key but the options of the components and of the process."""
    return dict(
        seed=0,  # of the weights, the order of the data, and all noise
        data=dict(name="digits"),
        latent=dict(  # what the network sees instead of pixels
            factor=1,  # pixels of a side for one of a latent's; 1: pixels
            autoencoder=config_dict.placeholder(str),  # diffusers' AutoencoderKL, its file
            path=config_dict.placeholder(str),  # folder of what --mode=prepare makes of the images
        ),
        model=dict(name="vit"),
        diffusion=dict(
            schedule=dict(name="RectifiedFlow"),
            # prediction, loss_space, ...: see `diffusion.process.Process`
            times=dict(name="logit_normal"),  # the timestep distribution
            stratified=True,  # spread each batch evenly over it
            label_dropout=0.1,  # how often the condition is dropped, for guidance
        ),
        degradation=dict(  # of images, as a condition: the model learns to restore them
            operators=(),  # as `operators.spelling` has them, each as likely; empty: none
            noise=0.1,  # largest standard deviation, in units of [-1, 1]; the least is 0
            bank=64,  # masks, motions, ... that are drawn of each operator
        ),
        optimizer=dict(
            learning_rate=1e-4,  # after warm-up
            warmup=0,  # steps
            decay="constant",  # afterwards: constant, or cosine to 0 at train.steps
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            weight_decay=0.0,  # of matrices
            clip=0.0,  # bound of the gradient's global norm; 0: none
        ),
        train=dict(
            steps=100_000,
            batch=256,  # global
            # parts of the batch that are run one after the other. (DiT-XL as below, 2: MFU 0.587)
            accumulate=1,
            # or bfloat16, where config.model.dtype is: half the messages. (By the compiler's count
            # for DiT-XL on v5e:2x2, 32 images a chip: MFU with messages 0.679 instead of 0.627.)
            gradient_dtype="float32",
            ema=(0.9999,),  # decays of the parameter averages, each with warm-up
            ema_widths=(),  # of more averages, relative to the run: see sample.ema_width
            init_from=config_dict.placeholder(str),  # workdir of a model to start from
            max_bad_steps=10,  # stop after so many non-finite losses or gradients in a row
        ),
        parallel=dict(
            compiler="jit",  # or pmap
            # over how many devices parameters are cut. (The same model, MFU with messages: over 4
            # 0.662 and 9.6 GiB a chip; zero1 in its place 0.679 and 10.4; neither 0.564 and 15.4.)
            fsdp=1,
            zero1=False,  # keep the training state cut over all devices (ZeRO-1, arXiv:1910.02054)
            data_threads=1,  # that read and decode, in each process
        ),
        checkpoint=dict(
            every=1000,  # steps
            keep=3,  # the newest so many stay
            keep_every=0,  # and each whose step is a multiple of this; 0: none
        ),
        log=dict(
            every=100,  # steps between lines of metrics
            sample_every=1000,  # steps between sample grids; 0: none
            heldout_every=1000,  # steps between held-out losses; 0: none
            heldout_images=512,
            heldout_levels=5,  # noise levels of the held-out loss, equally likely in training
            images=64,  # in a sample grid
            nearest_every=0,  # steps between searches for copies of training images; 0: none
            evaluate_every=0,  # steps between evaluations of each EMA; 0: none
            evaluate_images=2048,
        ),
        sample=dict(
            sampler=dict(name="heun"),
            grid=dict(name="linear"),
            steps=50,
            guidance=1.0,  # 1: none
            guidance_low=0.0,  # guide only where guidance_low <= t <= guidance_high
            guidance_high=1.0,
            guidance_channels=0,  # guide the first so many only (DiT: 3); 0: all
            guidance_rescale=0.0,  # of the contrast that guidance adds, take so much back
            guide_with=config_dict.placeholder(str),  # workdir of a worse model, to guide instead
            # of the model without its condition: autoguidance
            threshold="none",  # of the estimate of x: static, dynamic
            threshold_quantile=0.995,  # of dynamic
            ema=config_dict.placeholder(float),  # which of train.ema; None: the first
            ema_width=config_dict.placeholder(float),  # instead an average of any width (EDM2),
            # made from those of train.ema_widths in all checkpoints kept by checkpoint.keep_every
            batch=256,  # images per call
        ),
        restore=dict(
            steps=100,  # on config.sample.grid
            batch=64,  # images at once
            tiles=0,  # through the network at once, of pictures larger than the model's; 0: all
            overlap=0.5,  # of neighbouring tiles, at least, as a share of a tile
            tasks=(),  # for the benchmark: as --task has them
            methods=(),  # and as --method has them; empty: all that serve the task
            images=64,  # held-out ones
            metrics=("psnr", "ssim"),  # of pairs, modules of vitdiff_jax/evaluation
            noise_std=config_dict.placeholder(float),  # in [-1, 1]; None: the preset's, or none
        ),
        evaluate=dict(
            metrics=(),  # modules of vitdiff_jax/evaluation
            images=5000,
            seed=1_000_000,  # image i has the seed evaluate.seed + i
            labels="balanced",  # the classes in turn; or prior: as in the held-out images
            reference="heldout",  # or train, or a file of --mode=statistics, ADM, torch-fidelity
            inception=config_dict.placeholder(str),  # path of FID's weights; None: fetched
            sweep=dict(  # evaluate all combinations; empty: the value of config.sample
                guidance=(), interval=(),  # of t, pairs (low, high)
                ema=(), ema_width=(), sampler=(), steps=(),
            ),
        ),
    )  # fmt: skip
