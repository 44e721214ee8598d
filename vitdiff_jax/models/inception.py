"""The Inception network behind FID: Inception-v3 as TensorFlow's graph of 2015-12-05 computes it.

Rethinking the Inception Architecture (arXiv:1512.00567), with that graph's own ways: images are
resized by TensorFlow 1's bilinear rule, average pools do not count the padding, the last block
pools by the maximum, and there are 1008 classes. Batch normalisation (eps 0.001) is folded into
the convolutions. Everything is float32 in full precision, also on TPUs: reduced precision shifts
FID. Blocks have the names of the published PyTorch weights, which `from_torch` reads.
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
SPATIAL = 7  # channels of Mixed_6d that sFID looks at: of its first branch, as in ADM's code


class Inception(nn.Module):
    """Images [B, H, W, 3] of 0 to 255 -> {"pool": [B, 2048], "logits": [B, 1008], "spatial"}.

    "spatial": [B, 2023], the part of Mixed_6d for sFID, rows first, channels last. The logits are
    without their bias, as Inception Scores want them.
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        x = (resize(images, SIDE, SIDE) - 128) / 128  # [B, 299, 299, 3]
        x = Conv(32, 3, 2, False, name="Conv2d_1a_3x3")(x)  # [B, 149, 149, 32]
        x = Conv(32, 3, 1, False, name="Conv2d_2a_3x3")(x)
        x = Conv(64, 3, name="Conv2d_2b_3x3")(x)  # [B, 147, 147, 64]
        x = halve(x)
        x = Conv(80, 1, name="Conv2d_3b_1x1")(x)  # [B, 73, 73, 80]
        x = Conv(192, 3, 1, False, name="Conv2d_4a_3x3")(x)  # [B, 71, 71, 192]
        x = halve(x)
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
    """Convolution with a bias, then ReLU. `same`: the output has the input's size, else it fits in.

    XLA's convolutions on CPUs are up to six times faster with any padding than with none: a row of
    zeros below makes their output one row longer at most, and that is cut off. One pixel is a
    matrix product, which is faster too; an average before it may come after it (`pool`), where
    there are fewer channels.
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


class BlockA(nn.Module):
    """35x35: 1x1, 5x5, twice 3x3, average."""

    pooled: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = Conv(64, name="branch1x1")(x)
        five = Conv(48, name="branch5x5_1")(x)
        five = Conv(64, 5, name="branch5x5_2")(five)
        double = Conv(64, name="branch3x3dbl_1")(x)
        double = Conv(96, 3, name="branch3x3dbl_2")(double)
        double = Conv(96, 3, name="branch3x3dbl_3")(double)
        pool = Conv(self.pooled, pool=average, name="branch_pool")(x)
        return jnp.concatenate([one, five, double, pool], -1)


class BlockB(nn.Module):
    """35x35 to 17x17."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = Conv(384, 3, 2, False, name="branch3x3")(x)
        double = Conv(64, name="branch3x3dbl_1")(x)
        double = Conv(96, 3, name="branch3x3dbl_2")(double)
        double = Conv(96, 3, 2, False, name="branch3x3dbl_3")(double)
        return jnp.concatenate([three, double, halve(x)], -1)


class BlockC(nn.Module):
    """17x17: 1x1, 7x7 and twice 7x7 in strips, average."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = Conv(192, name="branch1x1")(x)
        seven = Conv(self.width, name="branch7x7_1")(x)
        seven = Conv(self.width, (1, 7), name="branch7x7_2")(seven)
        seven = Conv(192, (7, 1), name="branch7x7_3")(seven)
        double = Conv(self.width, name="branch7x7dbl_1")(x)
        double = Conv(self.width, (7, 1), name="branch7x7dbl_2")(double)
        double = Conv(self.width, (1, 7), name="branch7x7dbl_3")(double)
        double = Conv(self.width, (7, 1), name="branch7x7dbl_4")(double)
        double = Conv(192, (1, 7), name="branch7x7dbl_5")(double)
        pool = Conv(192, pool=average, name="branch_pool")(x)
        return jnp.concatenate([one, seven, double, pool], -1)


class BlockD(nn.Module):
    """17x17 to 8x8."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = Conv(192, name="branch3x3_1")(x)
        three = Conv(320, 3, 2, False, name="branch3x3_2")(three)
        seven = Conv(192, name="branch7x7x3_1")(x)
        seven = Conv(192, (1, 7), name="branch7x7x3_2")(seven)
        seven = Conv(192, (7, 1), name="branch7x7x3_3")(seven)
        seven = Conv(192, 3, 2, False, name="branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, halve(x)], -1)


class BlockE(nn.Module):
    """8x8: 1x1, 3x3 and twice 3x3 with a split end, a pool."""

    last: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = Conv(320, name="branch1x1")(x)
        three = Conv(384, name="branch3x3_1")(x)
        wide = Conv(384, (1, 3), name="branch3x3_2a")(three)
        tall = Conv(384, (3, 1), name="branch3x3_2b")(three)
        double = Conv(448, name="branch3x3dbl_1")(x)
        double = Conv(384, 3, name="branch3x3dbl_2")(double)
        wider = Conv(384, (1, 3), name="branch3x3dbl_3a")(double)
        taller = Conv(384, (3, 1), name="branch3x3dbl_3b")(double)
        pool = Conv(192, pool=None if self.last else average, name="branch_pool")(
            largest(x) if self.last else x
        )
        return jnp.concatenate([one, wide, tall, wider, taller, pool], -1)


def halve(x: jax.Array) -> jax.Array:
    """The maximum of each second window of 3x3."""
    return _windows(x, jnp.maximum, 2)


def largest(x: jax.Array) -> jax.Array:
    """The maximum of 3x3 around each place."""
    around = [(0, 0), (1, 1), (1, 1), (0, 0)]
    return _windows(jnp.pad(x, around, constant_values=-jnp.inf), jnp.maximum, 1)


def average(x: jax.Array) -> jax.Array:
    """The mean of 3x3 around each place, of those inside the image."""
    around = [(0, 0), (1, 1), (1, 1), (0, 0)]
    rows, columns = (3 - np.isin(np.arange(n), (0, n - 1)) for n in x.shape[1:3])
    counts = np.float32(rows[:, None, None] * columns[:, None])  # [H, W, 1]
    return _windows(jnp.pad(x, around), jnp.add, 1) / counts


def _windows(x: jax.Array, combine: Callable, stride: int) -> jax.Array:
    """Combine windows of 3x3, by rows and columns: XLA's own windows take 1 to 10 times as long."""
    for axis in (2, 1):
        last = (x.shape[axis] - 3) // stride * stride
        a, b, c = (jax.lax.slice_in_dim(x, i, i + last + 1, stride, axis) for i in range(3))
        x = combine(combine(a, b), c)
    return x


def resize(images: jax.Array, height: int, width: int) -> jax.Array:
    """TensorFlow 1's bilinear resize to float32 [B, height, width, C], aligned at the first corner.

    Row i lies at i * H / height of the input: no half pixels, no antialiasing.
    """
    x = images.astype(jnp.float32)
    for axis, side in ((2, width), (1, height)):  # along rows first, as TensorFlow rounds
        size = x.shape[axis]
        place = np.arange(side, dtype=np.float32) * np.float32(size / side)
        low = place.astype(np.int32)
        share = (place - low).reshape([-1, 1] if axis == 2 else [-1, 1, 1])
        left, right = (jnp.take(x, np.minimum(i, size - 1), axis) for i in (low, low + 1))
        x = left + (right - left) * share
    return x


def from_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameters of `Inception` from the published tensors, normalisation folded in (float64).

    Raises ValueError where a tensor is missing, left over or of another shape.
    """
    model, rest = Inception(), dict(tensors)
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    variables: Any = jax.eval_shape(model.init, jax.random.key(0), image)
    shapes: dict[Any, Any] = flatten_dict(variables["params"])

    def take(name, shape):
        if name not in rest:
            raise ValueError(f"no tensor {name}")
        tensor = rest.pop(name)
        if tensor.shape != shape:
            raise ValueError(f"{name} has the shape {tensor.shape}, not {shape}")
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
        raise ValueError(f"a tensor {min(rest)} that the network does not have")
    return unflatten_dict({path: value.astype(np.float32) for path, value in params.items()})
