"""Layers shared by the denoisers: embeddings, norms, feed-forward layers, patches, block stacks.

Tokens are [B, N, D]. Parameters are float32; `dtype` is that of the matrix products. Norms, softmax
and position embeddings are computed in float32.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import linear_call
from jax.experimental.layout import Layout, with_layout_constraint

EPSILON = 1e-6  # of RMSNorm, and of DiT's LayerNorm
REMAT = {  # what is saved of each block for the backward pass instead of being recomputed
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
xavier = nn.initializers.xavier_uniform()
small_normal = nn.initializers.normal(0.02)


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Zero initializer."""
    return jnp.zeros(shape, dtype)


def device_kind() -> str:
    """The device kind of the current mesh, which may be abstract, else of this machine."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (device or jax.devices()[0]).device_kind


def on_gpu() -> bool:
    """Whether the current target is a GPU."""
    return not device_kind().startswith(("TPU", "cpu"))


def on_tpu() -> bool:
    """Whether the current target is a TPU."""
    return device_kind().startswith("TPU")


def row_major(x: jax.Array) -> jax.Array:
    """Constrain x and its gradient to a row-major layout.

    By itself, XLA puts the batch last in arrays with one vector per image, for the sake of one
    weight gradient, and then in all tokens: on a GPU each product gets a transpose before and after
    it. (JiT-B/16, 128 images on an H200: 67.4 ms a step without this, with heads before tokens and
    SwiGLU's halves as one product; 56.9 ms with.)
    """
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def broadcast_to(a: jax.Array, shape: Sequence[int]) -> jax.Array:
    """`jnp.broadcast_to(a, shape)` for biases and gates; a has the same rank, with axes of size 1.

    The gradient sums over these axes, on a TPU as a product with ones: by the compiler's estimate
    for a v5e, the sum of DiT-XL's [32, 256, 1152] in bfloat16 takes 132 to 260 thousand cycles of
    the vector unit, the product 9 to 49 of the matrix unit. A plain sum adds 0.7 million cycles for
    the attention biases and 0.15 for each gate to the 10.8 of a block. Does not support vmap.
    """
    axes = [i for i, (had, has) in enumerate(zip(a.shape, shape, strict=True)) if had != has]

    def summed(_, d):
        if not on_tpu():
            return d.sum(axes, keepdims=True)
        # With one column XLA turns the product back into a sum.
        ones = jax.lax.optimization_barrier(jnp.ones([d.shape[i] for i in axes] + [8], d.dtype))
        product = jax.lax.dot_general(
            d, ones, ((axes, range(len(axes))), ((), ())),
            precision="highest", preferred_element_type=jnp.float32,
        )  # fmt: skip
        return product[..., 0].reshape(a.shape).astype(a.dtype)

    return linear_call(lambda _, a: jnp.broadcast_to(a, shape), summed, (), a)


class Dense(nn.Dense):
    """flax's Dense with a fast layout for each platform. [..., D] -> [..., features].

    halves: return the output as two arrays, split along its features.
    """

    halves: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        shape = (self.features,)
        bias = self.param("bias", self.bias_init, shape) if self.use_bias else jnp.zeros(shape)
        x, kernel, bias = x.astype(self.dtype), kernel.astype(self.dtype), bias.astype(self.dtype)
        if on_tpu():
            # A reshape here prevents fusion with the next operation: a DiT-XL block takes 9.4
            # million cycles instead of 9.1, forward and backward. Halves are two products: with a
            # single one, each of its gradients concatenates those of the halves again (a JiT-B
            # block with class tokens: 12.4 million cycles instead of 11.4).
            if not self.halves:
                return x @ kernel + bias
            cut = zip(jnp.split(kernel, 2, -1), jnp.split(bias, 2, -1), strict=True)
            return tuple(x @ k + b for k, b in cut)
        if on_gpu():
            flat, parts = x.reshape(-1, x.shape[-1]), 1 + self.halves  # two products there too
            cut = zip(jnp.split(kernel, parts, -1), jnp.split(bias, parts, -1), strict=True)
            ys = [row_major((flat @ k + b).reshape(*x.shape[:-1], -1)) for k, b in cut]
            return tuple(ys) if self.halves else ys[0]
        # The weight gradient then contracts one axis; for two, XLA on CPU first writes a transposed
        # copy (37 % slower, forward and backward).
        y = x.reshape(-1, x.shape[-1]) @ kernel + bias
        y = y.reshape(*x.shape[:-1], self.features)
        return tuple(jnp.split(y, 2, -1)) if self.halves else y


def patchify(x: jax.Array, patch: int) -> jax.Array:
    """Images [B, H, W, C] to patches [B, N, p p C], row by row; channels vary fastest."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch * c).swapaxes(2, 3)
    return x.reshape(b, -1, patch * patch * c)  # [B, N, p*p*C]


def unpatchify(x: jax.Array, patch: int, height: int, width: int) -> jax.Array:
    """The inverse of `patchify`: patches [B, N, p p C] to images [B, height, width, C]."""
    b = x.shape[0]
    x = x.reshape(b, height // patch, width // patch, patch, -1).swapaxes(2, 3)
    return x.reshape(b, height, width, -1)  # [B, H, W, C]


def sincos_positions(rows: int, cols: int, width: int) -> jax.Array:
    """Fixed 2-D sine-cosine position embeddings [rows*cols, width], as in MAE and DiT.

    The first half of the channels encodes the column, the second the row; in each half, sines come
    before cosines, with frequencies 10000^(-i / (width/4)). `width` must be a multiple of 4.
    """
    frequencies = 10000.0 ** (-jnp.arange(width // 4) / (width // 4))

    def encode(position):  # [n] -> [n, width/2]
        angle = position[:, None] * frequencies
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)

    row, col = jnp.divmod(jnp.arange(rows * cols), cols)
    return jnp.concatenate([encode(col), encode(row)], -1)


def rms_norm(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """RMSNorm over the last axis times `scale` plus `shift`, in float32, returned in x.dtype."""
    y = x.astype(jnp.float32)
    norm = jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + EPSILON)
    return (y * norm * scale + shift).astype(x.dtype)


def layer_norm(
    x: jax.Array, scale: jax.Array, shift: jax.Array, epsilon: float = EPSILON
) -> jax.Array:
    """LayerNorm over the last axis times `scale` plus `shift`, in float32, returned in x.dtype."""
    y = x.astype(jnp.float32)
    mean = jnp.mean(y, -1, keepdims=True)
    if x.dtype == jnp.bfloat16:
        # Mean and variance in one pass: on a TPU this saves 0.28 of 1.4 million cycles, forward and
        # backward, twice in each DiT-XL block. The cancellation with a large mean costs float32
        # digits that bfloat16 inputs do not have.
        variance = jnp.maximum(jnp.mean(y * y, -1, keepdims=True) - mean * mean, 0)
    else:
        variance = jnp.mean(jnp.square(y - mean), -1, keepdims=True)
    return ((y - mean) * jax.lax.rsqrt(variance + epsilon) * scale + shift).astype(x.dtype)


def group_norm(
    x: jax.Array, groups: int, scale: jax.Array, shift: jax.Array, epsilon: float = 1e-5
) -> jax.Array:
    """GroupNorm (arXiv:1803.08494) of [B, H, W, C], over the positions and C/groups channels.

    Times `scale` plus `shift`, in float32, returned in x.dtype.
    """
    b, h, w, c = x.shape
    y = x.astype(jnp.float32).reshape(b, h * w, groups, c // groups)
    y = y - jnp.mean(y, (1, 3), keepdims=True)
    norm = jax.lax.rsqrt(jnp.mean(y * y, (1, 3), keepdims=True) + epsilon)
    return ((y * norm).reshape(b, h, w, c) * scale + shift).astype(x.dtype)


class SwiGLU(nn.Module):
    """Gated feed-forward layer (arXiv:2002.05202) of width `hidden`. [B, N, D] -> same."""

    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, drop=lambda y: y) -> jax.Array:
        first = Dense(2 * self.hidden, kernel_init=xavier, dtype=self.dtype, halves=True, name="in")
        gate, value = first(x)
        y = drop(nn.silu(gate) * value)
        return Dense(x.shape[-1], kernel_init=xavier, dtype=self.dtype, name="out")(y)


class FeedForward(nn.Module):
    """Feed-forward layer of width `hidden` with GELU. [B, N, D] -> same.

    tanh: the tanh approximation of GELU, as in DiT, else the exact one.
    """

    hidden: int
    dtype: jnp.dtype
    tanh: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = Dense(self.hidden, kernel_init=xavier, dtype=self.dtype, name="in")(x)
        y = nn.gelu(y, approximate=self.tanh)
        return Dense(x.shape[-1], kernel_init=xavier, dtype=self.dtype, name="out")(y)


class TimeEmbedding(nn.Module):
    """A scalar per example [B] to a vector [B, width]: 256 sinusoids, cosines first, and an MLP."""

    width: int
    dtype: jnp.dtype
    last_init: Any = small_normal

    @nn.compact
    def __call__(self, time: jax.Array) -> jax.Array:
        frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(128) / 128)
        angle = time[:, None] * frequencies
        y = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)  # [B, 256]
        y = Dense(self.width, kernel_init=small_normal, dtype=self.dtype, name="in")(y)
        last = Dense(self.width, kernel_init=self.last_init, dtype=self.dtype, name="out")
        return last(nn.silu(y))


class LabelEmbedding(nn.Module):
    """A class [B] in 0..classes-1 to a vector [B, width]; -1 is the null class."""

    classes: int
    width: int

    @nn.compact
    def __call__(self, label: jax.Array) -> jax.Array:
        embed = nn.Embed(self.classes + 1, self.width, embedding_init=small_normal, name="table")
        return embed(jnp.where(label < 0, self.classes, label))


def dropout(x: jax.Array, keys: jax.Array, rate: jax.Array) -> jax.Array:
    """Dropout on x [B, ...] at `rate`, with one key per example [B].

    flax's Dropout draws one mask for the whole batch, which depends on how the batch is sharded;
    here the mask depends on the example alone.
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def run_blocks(
    block: type[nn.Module],
    options: Sequence[Any],
    numbers: range,
    h: jax.Array,
    own: Sequence[Any],
    shared: Sequence[Any],
    *,
    scan: bool,
    remat: str,
) -> tuple[jax.Array, list[Any]]:
    """Apply the blocks `numbers` to h, unrolled or scanned, inside a compact method.

    Block i is `block(*options)(h, inputs of i, *shared) -> (h, outputs of i)`; `own` has the inputs
    of each block, a tree of arrays or None. Returns the last h and the outputs of each block.
    Parameters are called `block_<i>`, or `blocks_<first>_to_<last>` and stacked where scanned.
    """
    make: Any = block
    if (policy := REMAT[remat]) is not None:
        make = nn.remat(block, policy=policy, prevent_cse=not scan)
    if not scan or not numbers:
        more = []
        for i, part in zip(numbers, own, strict=True):
            h, found = make(*options, name=f"block_{i}")(h, part, *shared)
            more.append(found)
        return h, more
    make = nn.scan(
        make,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, *[nn.broadcast] * len(shared)),  # pyright: ignore[reportArgumentType]
        length=len(numbers),
    )
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *own)
    name = f"blocks_{numbers[0]}_to_{numbers[-1]}"
    h, found = make(*options, name=name)(h, stacked, *shared)
    return h, [jax.tree.map(lambda a, i=i: a[i], found) for i in range(len(numbers))]


def check_choices(**options: tuple[str, Collection[str]]) -> None:
    """Raise `ValueError("<option>: ...")` where in (value, choices) the value is not a choice."""
    for name, (value, choices) in options.items():
        if value not in choices:
            raise ValueError(f"{name}: {value!r} is not one of {', '.join(choices)}")


def check_minimum(**options: tuple[int, int]) -> None:
    """Raise `ValueError("<option>: ...")` where in (value, minimum) the value is below it."""
    for name, (value, minimum) in options.items():
        if value < minimum:
            raise ValueError(f"{name}: {value} is less than {minimum}")
