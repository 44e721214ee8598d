"""The Inception network of FID: Inception-v3 as computed by TensorFlow's graph of 2015-12-05.

Rethinking the Inception Architecture (arXiv:1512.00567), with the details of that graph: images are
resized by TensorFlow 1's bilinear rule, average pooling excludes the padding, the last block uses
max pooling, and there are 1008 classes. Batch normalisation (eps 0.001) is folded into the
convolutions. Everything is float32 at full precision, on TPUs too, since reduced precision shifts
FID. Blocks are named as in the published PyTorch weights, which `from_torch` reads.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

SIDE, EPS = 299, 1e-3
HIGHEST = jax.lax.Precision.HIGHEST
SPATIAL = 7  # channels of Mixed_6d for sFID: the first of its first branch, as in ADM's code


class Inception(nn.Module):
    """Images [B, H, W, 3] of 0 to 255 -> {"pool": [B, 2048], "logits": [B, 1008], "spatial"}.

    "spatial": [B, 2023], the features of Mixed_6d for sFID, rows first, channels last. The logits
    have no bias, as in published Inception Scores.
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        x = (resize(images, SIDE, SIDE) - 128) / 128  # [B, 299, 299, 3]
        x = Conv(32, 3, 2, False, name="Conv2d_1a_3x3")(x)  # [B, 149, 149, 32]
        x = Conv(32, 3, 1, False, name="Conv2d_2a_3x3")(x)
        x = Conv(64, 3, name="Conv2d_2b_3x3")(x)  # [B, 147, 147, 64]
        x = max_pool_halve(x)
        x = Conv(80, 1, name="Conv2d_3b_1x1")(x)  # [B, 73, 73, 80]
        x = Conv(192, 3, 1, False, name="Conv2d_4a_3x3")(x)  # [B, 71, 71, 192]
        x = max_pool_halve(x)
        x = BlockA(32, name="Mixed_5b")(x)  # [B, 35, 35, 256]
        x = BlockA(64, name="Mixed_5c")(x)
        x = BlockA(64, name="Mixed_5d")(x)  # [B, 35, 35, 288]
        x = BlockB(name="Mixed_6a")(x)  # [B, 17, 17, 768]
        x = BlockC(128, name="Mixed_6b")(x)
        x = BlockC(160, name="Mixed_6c")(x)
        x = BlockC(160, name="Mixed_6d")(x)
        spatial = x[..., :SPATIAL].reshape(len(x), -1)  # [B, 17 * 17 * 7]
        x = BlockC(192, name="Mixed_6e")(x)
        x = BlockD(name="Mixed_7a")(x)  # [B, 8, 8, 1280]
        x = BlockE(False, name="Mixed_7b")(x)
        x = BlockE(True, name="Mixed_7c")(x)  # [B, 8, 8, 2048]
        pool = x.mean((1, 2))
        logits = nn.Dense(1008, False, precision=HIGHEST, name="fc")(pool)
        return {"pool": pool, "logits": logits, "spatial": spatial}


class Conv(nn.Module):
    """Convolution with a bias, then ReLU. `same`: SAME padding, else VALID.

    On CPUs XLA's convolutions are up to six times faster with any padding than with none, so VALID
    pads one row of zeros at the bottom and drops the extra output row. A 1x1 convolution is a
    matrix product, which is faster too; average pooling before it commutes with it and is applied
    afterwards (`pool`), where there are fewer channels.
    """

    features: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    same: bool = True
    pool: Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        height, width = np.broadcast_to(self.kernel, 2)
        shape = (height, width, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:])
        if height == width == 1:
            flat = x.reshape(-1, shape[2])
            y = jnp.dot(flat, kernel[0, 0], precision=HIGHEST).reshape(*x.shape[:-1], -1)
            return nn.relu((self.pool(y) if self.pool else y) + bias)
        rows = (x.shape[1] - height) // self.stride + 1
        padding = ((height // 2,) * 2, (width // 2,) * 2) if self.same else ((0, 1), (0, 0))
        y = jax.lax.conv_general_dilated(
            x, kernel, (self.stride,) * 2, padding, precision=HIGHEST,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return nn.relu((y if self.same else y[:, :rows]) + bias)


def chain(x: jax.Array, name: str, *layers: tuple[Any, ...]) -> jax.Array:
    """Convolutions `<name>_1`, `<name>_2`, ... in sequence, inside of a compact method.

    layers: the options of each `Conv`.
    """
    for i, options in enumerate(layers, 1):
        x = Conv(*options, name=f"{name}_{i}")(x)
    return x


class BlockA(nn.Module):
    """35x35; branches: 1x1, 5x5, double 3x3, average pooling."""

    pooled: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = Conv(64, name="branch1x1")(x)
        five = chain(x, "branch5x5", (48,), (64, 5))
        double = chain(x, "branch3x3dbl", (64,), (96, 3), (96, 3))
        pool = Conv(self.pooled, pool=avg_pool, name="branch_pool")(x)
        return jnp.concatenate([one, five, double, pool], -1)


class BlockB(nn.Module):
    """35x35 to 17x17; branches: 3x3, double 3x3, max pooling."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = Conv(384, 3, 2, False, name="branch3x3")(x)
        double = chain(x, "branch3x3dbl", (64,), (96, 3), (96, 3, 2, False))
        return jnp.concatenate([three, double, max_pool_halve(x)], -1)


class BlockC(nn.Module):
    """17x17; branches: 1x1, factorised 7x7, double factorised 7x7, average pooling."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        w, row, column = self.width, (1, 7), (7, 1)
        one = Conv(192, name="branch1x1")(x)
        seven = chain(x, "branch7x7", (w,), (w, row), (192, column))
        double = chain(x, "branch7x7dbl", (w,), (w, column), (w, row), (w, column), (192, row))
        pool = Conv(192, pool=avg_pool, name="branch_pool")(x)
        return jnp.concatenate([one, seven, double, pool], -1)


class BlockD(nn.Module):
    """17x17 to 8x8; branches: 3x3, factorised 7x7 and 3x3, max pooling."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = chain(x, "branch3x3", (192,), (320, 3, 2, False))
        seven = chain(x, "branch7x7x3", (192,), (192, (1, 7)), (192, (7, 1)), (192, 3, 2, False))
        return jnp.concatenate([three, seven, max_pool_halve(x)], -1)


class BlockE(nn.Module):
    """8x8; branches: 1x1, 3x3 and double 3x3, each with a split end, pooling."""

    last: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = Conv(320, name="branch1x1")(x)
        three = chain(x, "branch3x3", (384,))
        wide = Conv(384, (1, 3), name="branch3x3_2a")(three)
        tall = Conv(384, (3, 1), name="branch3x3_2b")(three)
        double = chain(x, "branch3x3dbl", (448,), (384, 3))
        wider = Conv(384, (1, 3), name="branch3x3dbl_3a")(double)
        taller = Conv(384, (3, 1), name="branch3x3dbl_3b")(double)
        pool = Conv(192, pool=None if self.last else avg_pool, name="branch_pool")(
            max_pool(x) if self.last else x
        )
        return jnp.concatenate([one, wide, tall, wider, taller, pool], -1)


def max_pool_halve(x: jax.Array) -> jax.Array:
    """3x3 max pooling with stride 2, without padding."""
    return _windows(x, jnp.maximum, 2)


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 max pooling with stride 1 and SAME padding."""
    around = [(0, 0), (1, 1), (1, 1), (0, 0)]
    return _windows(jnp.pad(x, around, constant_values=-jnp.inf), jnp.maximum, 1)


def avg_pool(x: jax.Array) -> jax.Array:
    """3x3 average pooling with stride 1 and SAME padding, which the mean excludes."""
    around = [(0, 0), (1, 1), (1, 1), (0, 0)]
    rows, columns = (3 - np.isin(np.arange(n), (0, n - 1)) for n in x.shape[1:3])
    counts = np.float32(rows[:, None, None] * columns[:, None])  # [H, W, 1]
    return _windows(jnp.pad(x, around), jnp.add, 1) / counts


def _windows(x: jax.Array, combine: Callable, stride: int) -> jax.Array:
    """Reduce 3x3 windows, separably: `lax.reduce_window` takes 1 to 10 times as long."""
    for axis in (2, 1):
        last = (x.shape[axis] - 3) // stride * stride
        a, b, c = (jax.lax.slice_in_dim(x, i, i + last + 1, stride, axis) for i in range(3))
        x = combine(combine(a, b), c)
    return x


def resize(images: jax.Array, height: int, width: int) -> jax.Array:
    """TensorFlow 1's bilinear resize to float32 [B, height, width, C], aligned at the first corner.

    Row i is sampled at i * H / height of the input: no half-pixel centres, no antialiasing.
    """
    x = images.astype(jnp.float32)
    for axis, side in ((2, width), (1, height)):  # along rows first: TensorFlow's rounding
        size = x.shape[axis]
        place = np.arange(side, dtype=np.float32) * np.float32(size / side)
        low = place.astype(np.int32)
        share = (place - low).reshape([-1, 1] if axis == 2 else [-1, 1, 1])
        left, right = (jnp.take(x, np.minimum(i, size - 1), axis) for i in (low, low + 1))
        x = left + (right - left) * share
    return x


def from_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameters of `Inception` from the published tensors, batch norm folded in (in float64).

    Raises ValueError for a tensor that is missing, unknown or has the wrong shape.
    """
    model, rest = Inception(), dict(tensors)
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    variables: Any = jax.eval_shape(model.init, jax.random.key(0), image)
    shapes: dict[Any, Any] = flatten_dict(variables["params"])

    def take(name, shape):
        if name not in rest:
            raise ValueError(f"tensor {name} is missing")
        tensor = rest.pop(name)
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tensor.shape}, not {shape}")
        return tensor.astype(np.float64)

    params = {}
    for path, wanted in shapes.items():
        if path[-1] == "bias":
            continue
        *home, _ = path
        name, shape = ".".join(home), tuple(wanted.shape)
        if home == ["fc"]:
            params[path] = take("fc.weight", shape[::-1]).T
            take("fc.bias", shape[-1:])
            continue
        kernel = take(f"{name}.conv.weight", (shape[3], shape[2], *shape[:2]))
        bn = {
            part: take(f"{name}.bn.{part}", shape[3:])
            for part in ("weight", "bias", "running_mean", "running_var")
        }
        rest.pop(f"{name}.bn.num_batches_tracked", None)
        scale = bn["weight"] / np.sqrt(bn["running_var"] + EPS)
        params[path] = kernel.transpose(2, 3, 1, 0) * scale  # [H, W, in, out]
        params[(*path[:-1], "bias")] = bn["bias"] - bn["running_mean"] * scale
    if rest:
        raise ValueError(f"unknown tensor {min(rest)}")
    return unflatten_dict({path: value.astype(np.float32) for path, value in params.items()})
