"""Latents and pictures: the autoencoder between what a network sees and what a person sees.

One number of a latent's side stands for config.latent.factor pixels of the picture's; a factor of 1
is a model of pixels, which needs nothing of this. The autoencoder is read from its published file
(`interop/families/autoencoder.py`), whichever model uses it.
"""

import dataclasses
import hashlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.data.images import Images
from vitdiff_jax.data.latents import Latents, write
from vitdiff_jax.data.pipeline import DataError, Dataset
from vitdiff_jax.data.records import Say
from vitdiff_jax.interop import families, torch_files
from vitdiff_jax.interop.images import from_uint8, to_uint8
from vitdiff_jax.interop.weights import WeightsError
from vitdiff_jax.models.autoencoder import Autoencoder
from vitdiff_jax.runtime import paths

SPLITS = ("train", "heldout")


class Codec:
    """An autoencoder with its weights. name: which weights, to compare."""

    def __init__(self, model: Autoencoder, params: Any, name: str):
        self.model, self.params, self.name = model, params, name

        def moments(params, images):
            x = from_uint8(images)
            found: Any = model.apply({"params": params}, x, method=Autoencoder.encode)
            return jnp.concatenate(found, -1)

        def pictures(params, z):
            def one(z):  # after the other: a picture of 256 px takes 0.6 GB of activations
                x: Any = model.apply({"params": params}, z[None], method=Autoencoder.decode)
                return to_uint8(x[0])

            return jax.lax.map(one, z)

        self._encode, self._decode = jax.jit(moments), jax.jit(pictures)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Means and log-variances [N, h, w, 2C] of the latents of uint8 images [N, H, W, 3]."""
        return np.asarray(self._encode(self.params, images))

    def decode(self, z: np.ndarray | jax.Array) -> jax.Array:
        """Images uint8 [..., H, W, 3] of latents [..., h, w, C]."""
        images = self._decode(self.params, z.reshape(-1, *z.shape[-3:]))
        return images.reshape(*z.shape[:-3], *images.shape[1:])


def load(path: str, factor: int) -> Codec:
    """The autoencoder in diffusers' file; WeightsError where it is none, or has another factor."""
    file = paths.local(path).expanduser()
    if not file.is_file():
        raise WeightsError(f"config.latent.autoencoder: there is no file {file}")
    try:
        found, params = families.from_torch("autoencoder", torch_files.read(file))
    except ValueError as error:
        raise WeightsError(f"config.latent.autoencoder: {file}: {error}") from error
    model = Autoencoder(**found.config["autoencoder"])
    if model.factor != factor:
        raise WeightsError(
            f"config.latent.autoencoder: {file} makes latents smaller by {model.factor}, not by"
            f" config.latent.factor={factor}"
        )
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return Codec(model, jax.device_put(params), f"SHA-256 {digest[:16]}")


def shape_of(pictures: Dataset, config: Any) -> tuple[int, int]:
    """Height and width of the latents of a config's images; ValueError if they have none."""
    factor = config.latent.factor
    height, width, channels = pictures.shape
    if factor < 1 or height % factor or width % factor or channels != 3:
        raise ValueError(f"factor: {factor} does not fit images of {height}x{width}x{channels}")
    if not all(isinstance(getattr(pictures, split), Images) for split in SPLITS):
        raise ValueError("factor: latents are of photographs in files, as of imagenet or folder")
    if config.data.get("random_area"):
        raise ValueError(
            "factor: latents are of one crop of each picture; use config.data.random_area=0"
        )
    return height // factor, width // factor


def latents_of(pictures: Dataset, config: Any) -> Dataset:
    """The prepared latents of a config's images, in their place.

    ValueError starts with the key of config.latent that is wrong.
    """
    size, latent = shape_of(pictures, config), config.latent
    folder = _folder(latent)
    name = load(latent.autoencoder, latent.factor).name if latent.autoencoder else None
    found = [
        Latents(folder / split, getattr(pictures, split), pictures.crop, name) for split in SPLITS
    ]
    shape = tuple(found[0].shape[1:])  # (h, w, 2C)
    if shape[:2] != size:
        raise DataError(
            f"{folder}: latents of {shape[0]}x{shape[1]}, but the images need {size[0]}x{size[1]};"
            " use another config.latent.path"
        )
    return dataclasses.replace(
        pictures, train=found[0], heldout=found[1], shape=(*size, shape[2] // 2),
        origin=f"latents in {folder} of {pictures.origin}",
    )  # fmt: skip


def prepare(pictures: Dataset, config: Any, say: Say, process: int = 0, processes: int = 1) -> None:
    """Write what `latents_of` reads, this process's part; what is there already stays."""
    shape_of(pictures, config)
    latent, folder = config.latent, _folder(config.latent)
    if not latent.autoencoder:
        raise ValueError(
            "autoencoder: needed to make latents: the file of diffusers' AutoencoderKL, such as"
            " sd-vae-ft-ema's diffusion_pytorch_model.safetensors"
        )
    codec = load(latent.autoencoder, latent.factor)
    for split in SPLITS:
        images = getattr(pictures, split)
        write(
            folder / split, images, pictures.crop, codec.encode, codec.name, say,
            process, processes,
        )  # fmt: skip


def _folder(config: Any) -> pathlib.Path:
    if not config.path:
        raise ValueError("path: needed: the folder for the latents that --mode=prepare writes")
    return paths.mounted(config.path, "path")
