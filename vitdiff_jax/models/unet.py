"""A convolutional U-Net in the manner of DDPM++ and ADM (arXiv:2011.13456, 2105.05233).

    3x3 conv -> residual blocks, downsampling -> middle -> blocks on [h, skip], upsampling

A baseline for the Transformers. A block is h += conv(silu(mod(GN(conv(silu(GN(h))))))), where
mod(y) = y (1 + scale) + shift comes from the sum of the time and condition embeddings; at chosen
resolutions and in the middle, self-attention over all positions follows. Text enters only as its
mean token. As in ADM, the second convolution of every block and the last layer are initialised to
zero: the network starts as the constant 0.

Neighbouring blocks differ in shape, so there is no `scan` option.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitdiff_jax.models import attention as attention_lib
from vitdiff_jax.models import conditions, layers
from vitdiff_jax.models.conditions import Sizes


def groups(channels: int) -> int:
    """The number of groups for GroupNorm: at most 32, of at least 4 channels each."""
    return math.gcd(channels, 32, max(1, channels // 4))


class Norm(nn.Module):
    """GroupNorm of [B, H, W, C] with learned scale and bias."""

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        channels = h.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", layers.zeros, (channels,))
        return layers.group_norm(h, groups(channels), scale, bias)


class Block(nn.Module):
    """A residual block on h [B, H, W, C'], modulated by c [B, D], to [B, H, W, channels].

    heads: of the self-attention that follows; 0: none.
    """

    channels: int
    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h: jax.Array, c: jax.Array) -> jax.Array:
        y = nn.silu(Norm(name="norm")(h))
        y = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="conv1")(y)
        mod = layers.Dense(2 * self.channels, dtype=self.dtype, name="mod")
        shift, scale = jnp.split(mod(nn.silu(c))[:, None, None], 2, -1)  # [B, 1, 1, channels]
        y = nn.silu(layers.group_norm(y, groups(self.channels), 1 + scale, shift))
        y = nn.Conv(
            self.channels, (3, 3), kernel_init=layers.zeros, dtype=self.dtype, name="conv2"
        )(y)
        if h.shape[-1] != self.channels:
            h = layers.Dense(self.channels, dtype=self.dtype, name="skip")(h)
        h = h + y
        if self.heads:
            attention = attention_lib.Attention(self.heads, self.dtype, name="attention")
            tokens = Norm(name="attention_norm")(h).reshape(len(h), -1, self.channels)  # [B, HW, C]
            h = h + attention(tokens).reshape(h.shape)
        return h


class Model(nn.Module):
    """The denoiser. `conditions` comes from the data set ({}: unconditional), see `conditions.py`.

    multipliers: channel multipliers of `width`, one per resolution, each half of the one before.
    blocks: residual blocks per resolution when downsampling; one more when upsampling.
    attention: levels with self-attention (0: full resolution); the middle always has it.
    head_width: channels per attention head.
    learned_sigma: output twice the channels: the prediction, then the values for its variance.
    dtype: of convolutions and matrix products, "float32" or "bfloat16"; parameters are float32.
    remat: rematerialisation of each block: "none", "full" or "dots" (convolutions are not dots).
    text_width, text_depth: of the jointly trained text encoder, where there is text.
    """

    conditions: Sizes
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (1, 2)
    head_width: int = 64
    learned_sigma: bool = False
    dtype: str = "float32"
    remat: str = "none"
    text_width: int = 256
    text_depth: int = 4

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raise `ValueError("<option>: ...")` where the options do not fit images of this shape."""
        layers.check_choices(
            remat=(self.remat, layers.REMAT), dtype=(self.dtype, ("float32", "bfloat16"))
        )
        layers.check_minimum(
            width=(self.width, 1), multipliers=(min(self.multipliers, default=0), 1),
            blocks=(self.blocks, 1), attention=(min(self.attention, default=0), 0),
            head_width=(self.head_width, 1), text_width=(self.text_width, 1),
            text_depth=(self.text_depth, 1),
        )  # fmt: skip
        last = len(self.multipliers) - 1
        if max(self.attention, default=0) > last:
            level = max(self.attention)
            raise ValueError(f"attention: there is no level {level}, only 0 to {last}")
        for level in (*self.attention, last):
            channels = self.width * self.multipliers[level]
            if channels % self._heads(channels):
                raise ValueError(
                    f"head_width: {self.head_width} does not divide {channels} channels"
                )
        conditions.check(self.conditions, self.text_width)
        if shape[0] % 2**last or shape[1] % 2**last:
            raise ValueError(
                f"multipliers: {last + 1} levels downsample by {2**last}, which does not divide the"
                f" {shape[0]}x{shape[1]} images"
            )

    @nn.compact
    def __call__(
        self, x: jax.Array, time: jax.Array, cond: dict, keys: jax.Array | None = None
    ) -> jax.Array:
        """x [B, H, W, C], time [B], cond (see `conditions.py`) -> float32 [B, H, W, C or 2C].

        keys [B]: unused, as there is no dropout; part of the interface of denoisers.
        """
        dtype, last = jnp.dtype(self.dtype), len(self.multipliers) - 1
        outputs = x.shape[-1] * (2 if self.learned_sigma else 1)
        c = layers.TimeEmbedding(4 * self.width, dtype, name="time")(time)
        embed = conditions.Embedding(
            self.conditions, 4 * self.width, dtype, self.text_width, self.text_depth,
            name="conditions",
        )  # fmt: skip
        vector, _, _ = embed(cond)
        if vector is not None:
            c = c + vector.astype(dtype)  # [B, 4 width]

        def conv(channels, name, stride=1):
            return nn.Conv(channels, (3, 3), (stride, stride), dtype=dtype, name=name)

        x = conditions.with_hint(x, self.conditions, cond).astype(dtype)
        h = conv(self.width, "in")(x)  # [B, H, W, width]
        skips = [h]
        for level in range(last + 1):
            for i in range(self.blocks):
                h = self._block(level, f"down_{level}_{i}")(h, c)
                skips.append(h)
            if level < last:
                h = conv(h.shape[-1], f"halve_{level}", stride=2)(h)  # [B, H/2, W/2, C']
                skips.append(h)
        for i, attends in enumerate((True, False)):
            h = self._block(last, f"middle_{i}", attends)(h, c)
        for level in reversed(range(last + 1)):
            for i in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], -1)
                h = self._block(level, f"up_{level}_{i}")(h, c)
            if level > 0:
                h = h.repeat(2, 1).repeat(2, 2)  # [B, 2H, 2W, C']
                h = conv(h.shape[-1], f"double_{level}")(h)
        h = nn.silu(Norm(name="head_norm")(h))
        out = nn.Conv(outputs, (3, 3), kernel_init=layers.zeros, dtype=dtype, name="head")(h)
        return out.astype(jnp.float32)

    def _heads(self, channels: int) -> int:
        return max(1, channels // self.head_width)

    def _block(self, level: int, name: str, attends: bool | None = None):
        """A block at this level, with self-attention where `attention` has the level."""
        channels = self.width * self.multipliers[level]
        attends = level in self.attention if attends is None else attends
        policy = layers.REMAT[self.remat]
        make = Block if policy is None else nn.remat(Block, policy=policy)
        heads = self._heads(channels) if attends else 0
        return make(channels, heads, jnp.dtype(self.dtype), name=name)
