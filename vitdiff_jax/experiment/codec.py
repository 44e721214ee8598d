"""The autoencoder of latent diffusion (arXiv:2112.10752): encoding images, decoding latents.

config.latent.factor is the autoencoder's downsampling factor; with a factor of 1, pixel space,
nothing here is used. The autoencoder is read from its published weights file
(`interop/families/autoencoder.py`).
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.data import marks
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
_FETCHED: dict[str, pathlib.Path] = {}  # copies of files in buckets


class Codec:
    """An autoencoder and its parameters. name: a fingerprint of the weights."""

    def __init__(self, model: Autoencoder, params: Any, name: str):
        self.model, self.params, self.name = model, params, name

        def moments(params, images):
            x = from_uint8(images)
            found: Any = model.apply({"params": params}, x, method=Autoencoder.encode)
            return jnp.concatenate(found, -1)

        def images(params, z):
            def one(z):  # sequentially: a 256 px image takes 0.6 GB of activations
                x: Any = model.apply({"params": params}, z[None], method=Autoencoder.decode)
                return to_uint8(x[0])

            return jax.lax.map(one, z)

        self._encode, self._decode = jax.jit(moments), jax.jit(images)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Means and log-variances [N, h, w, 2C] of the latents of uint8 images [N, H, W, 3]."""
        return np.asarray(self._encode(self.params, images))

    def decode(self, z: np.ndarray | jax.Array) -> jax.Array:
        """Images uint8 [..., H, W, 3] of latents [..., h, w, C]."""
        images = self._decode(self.params, z.reshape(-1, *z.shape[-3:]))
        return images.reshape(*z.shape[:-3], *images.shape[1:])


def load(path: str, factor: int) -> Codec:
    """Load the autoencoder from its weights: diffusers' or its authors' file, or a checkpoint of
    Stable Diffusion that contains it.

    Raises WeightsError if it is not one, or has another downsampling factor.
    """
    file = file_of(path)
    if not file.is_file():
        raise WeightsError(f"config.latent.autoencoder: there is no file {file}")
    try:
        contents = torch_files.read(file)
    except ValueError as error:
        raise WeightsError(f"config.latent.autoencoder: {error}") from error
    try:
        found, params = families.from_torch("autoencoder", contents)
    except ValueError as error:
        raise WeightsError(f"config.latent.autoencoder: {file}: {error}") from error
    model = Autoencoder(**found.config["autoencoder"])
    if model.factor != factor:
        raise WeightsError(
            f"config.latent.autoencoder: {file} has a downsampling factor of {model.factor}, not"
            f" config.latent.factor={factor}"
        )
    return Codec(model, jax.device_put(params), f"SHA-256 {marks.of_file(file)}")


def file_of(path: str) -> pathlib.Path:
    """The file of an autoencoder on this machine; one in a bucket is fetched once per process."""
    if not paths.remote(path):
        return paths.local_copy(path)
    if path not in _FETCHED or not _FETCHED[path].exists():  # a cleaned /tmp
        _FETCHED[path] = paths.local_copy(path)
    return _FETCHED[path]


def shape_of(dataset: Dataset, config: Any) -> tuple[int, int]:
    """Height and width of the latents of a config's images; ValueError if factor does not apply."""
    factor = config.latent.factor
    height, width, channels = dataset.shape
    if factor < 1 or height % factor or width % factor or channels != 3:
        raise ValueError(f"factor: {factor} does not fit images of {height}x{width}x{channels}")
    if not all(isinstance(getattr(dataset, split), Images) for split in SPLITS):
        raise ValueError("factor: latents need a dataset of image files, as imagenet or folder")
    if config.data.get("random_area"):
        raise ValueError(
            "factor: latents are made from one fixed crop per image; use config.data.random_area=0"
        )
    return height // factor, width // factor


def latents_of(dataset: Dataset, config: Any) -> Dataset:
    """The dataset of a config's prepared latents.

    Raises a ValueError that starts with the offending key of config.latent.
    """
    size, latent = shape_of(dataset, config), config.latent
    folder = _folder(latent)
    name = load(latent.autoencoder, latent.factor).name if latent.autoencoder else None
    found = [
        Latents(folder / split, getattr(dataset, split), dataset.crop, name) for split in SPLITS
    ]
    shape = tuple(found[0].shape[1:])  # (h, w, 2C)
    if shape[:2] != size:
        raise DataError(
            f"{folder}: {shape[0]}x{shape[1]} latents, but the images give {size[0]}x{size[1]};"
            " use another config.latent.path"
        )
    return dataclasses.replace(
        dataset, train=found[0], heldout=found[1], shape=(*size, shape[2] // 2),
        origin=f"latents in {folder} of {dataset.origin}",
    )  # fmt: skip


def prepare(dataset: Dataset, config: Any, say: Say, process: int = 0, processes: int = 1) -> None:
    """Write the latents that `latents_of` reads: this process's shard; existing ones are kept."""
    shape_of(dataset, config)
    latent, folder = config.latent, _folder(config.latent)
    if not latent.autoencoder:
        raise ValueError(
            "autoencoder: required to encode images: the weights of diffusers' AutoencoderKL, such"
            " as sd-vae-ft-ema's diffusion_pytorch_model.safetensors"
        )
    codec = load(latent.autoencoder, latent.factor)
    for split in SPLITS:
        images = getattr(dataset, split)
        write(
            folder / split, images, dataset.crop, codec.encode, codec.name, say,
            process, processes,
        )  # fmt: skip


def _folder(config: Any) -> pathlib.Path:
    if not config.path:
        raise ValueError("path: required: the folder of the latents that --mode=prepare writes")
    return paths.require_local(config.path, "path")
