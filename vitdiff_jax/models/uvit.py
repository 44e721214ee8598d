"""U-ViT, a Vision Transformer with the long skips of a U-Net (arXiv:2209.12152).

    [condition, time, text, patches] + learned positions -> blocks -> norm -> patches -> 3x3 conv

All conditions, the time included, are tokens. A block is h += Attention(LN(h)), then the same with
a feed-forward layer. There are depth + 1 blocks: each block after the middle one first merges the
output of its counterpart before it (a long skip): h = Linear(concat(h, skip)).

Sizes have the published names (S/4 on CelebA-64, M/4 and L/4 on ImageNet-64; S/2, S-deep/2, L/2 and
H/2 on latents). Unlike the published network, this one starts as the constant 0, like all denoisers
here: only its last layer is initialised to zero, so after the first step gradients reach all
layers.
"""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitdiff_jax.models import attention as attention_lib
from vitdiff_jax.models import layers
from vitdiff_jax.models.transformer import Transformer

SIZES = {
    "S": dict(width=512, depth=12, heads=8),
    "S-deep": dict(width=512, depth=16, heads=8),
    "M": dict(width=768, depth=16, heads=12),
    "L": dict(width=1024, depth=20, heads=16),
    "H": dict(width=1152, depth=28, heads=16),
}
EPSILON = 1e-5  # of LayerNorm


def timestep_embedding(time: jax.Array, width: int) -> jax.Array:
    """Sinusoids [B, width] of time [B]: cosines, then sines, of 10000^(-i / (width/2)) t."""
    half = width // 2
    angle = time[:, None] * jnp.exp(-math.log(10000.0) * jnp.arange(half) / half)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


class Norm(nn.Module):
    """LayerNorm over the last axis with learned scale and bias."""

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, h.shape[-1:])
        return layers.layer_norm(h, scale, self.param("bias", layers.zeros, h.shape[-1:]), EPSILON)


class Block(nn.Module):
    """One transformer block on tokens h [B, N, D]; skip: a long skip [B, N, D], or None."""

    heads: int
    hidden: int
    dtype: jnp.dtype
    implementation: str

    @nn.compact
    def __call__(self, h, skip, mask):
        """(tokens, the same as the skip for a later block, or None); mask [B, N] or None."""
        if skip is not None:
            both = jnp.concatenate([h, skip], -1)  # [B, N, 2D]
            h = layers.Dense(
                h.shape[-1], kernel_init=layers.small_normal, dtype=self.dtype, name="skip"
            )(both)
        attention = attention_lib.Attention(
            self.heads, self.dtype, bias=False, implementation=self.implementation, name="attention"
        )
        h = h + attention(Norm(name="norm1")(h), None, mask)
        feed_forward = layers.FeedForward(self.hidden, self.dtype, tanh=False, name="feed_forward")
        h = h + feed_forward(Norm(name="norm2")(h))
        return h, h if skip is None else None


class Model(Transformer):
    """The denoiser; see `Transformer` for the other options.

    size: S, S-deep, M, L or H. depth: even; half of the blocks come before the middle one, which is
        not counted.
    final_conv: a 3x3 convolution on the output, against seams between patches.
    learned_sigma: output twice the channels: the prediction, then the values for its variance.
    """

    sizes: ClassVar = SIZES
    min_depth: ClassVar = 0

    size: str = "S"
    patch: int = 4
    final_conv: bool = True
    learned_sigma: bool = False

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raise `ValueError("<option>: ...")` where the options do not fit images of this shape."""
        super().check(shape)
        if self.dim("depth") % 2:
            raise ValueError(
                f"depth: {self.dim('depth')} is odd; half of the blocks come before the middle one"
            )
        if self.dim("width") % 2:
            raise ValueError(
                f"width: {self.dim('width')} is odd; half of the time embedding are cosines"
            )

    def block_counts(self) -> dict[str, int]:
        """The number of blocks of each kind: pairs joined by a long skip."""
        return {"pair": self.dim("depth") // 2}

    def with_block_counts(self, counts: dict[str, int]) -> "Model":
        """The same model with so many blocks of each kind."""
        return self.clone(depth=2 * counts["pair"])

    @nn.compact
    def __call__(
        self, x: jax.Array, time: jax.Array, cond: dict, keys: jax.Array | None = None
    ) -> jax.Array:
        """x [B, H, W, C], time [B], cond (see `conditions.py`) -> float32 [B, H, W, C or 2C].

        keys [B]: unused, as there is no dropout; part of the interface of denoisers.
        """
        _, height, width, channels = x.shape
        rows, cols = height // self.patch, width // self.patch
        dim, dtype = self.dim("width"), jnp.dtype(self.dtype)

        prefix, mask = self._prefix(time, cond, rows * cols)
        h = self.patches(x, cond)  # [B, N, p*p*C]
        h = layers.Dense(dim, kernel_init=layers.xavier, dtype=dtype, name="patches")(h)
        positions = self.param("positions", layers.small_normal, (rows, cols, dim))
        h = h + positions.reshape(-1, dim).astype(dtype)  # [B, N, D]
        h = jnp.concatenate([prefix, h], 1)  # [B, M + N, D]

        h = self._blocks(h, mask)
        h = Norm(name="head_norm")(h)[:, prefix.shape[1] :]  # [B, N, D]
        return self._pixels(h, height, width, channels * (2 if self.learned_sigma else 1))

    def _prefix(self, time, cond, patches):
        """The tokens before the patches [B, M, D], and the mask of all [B, M + patches] or None.

        Label and attributes share one token, the sum of their embeddings; the time has one, a text
        many.
        """
        dim, dtype = self.dim("width"), jnp.dtype(self.dtype)
        vector, tokens, mask = self.embed(cond)
        parts = [timestep_embedding(time, dim).astype(dtype)[:, None]]
        if vector is not None and {"label", "attributes"} & set(self.conditions):
            parts.insert(0, vector.astype(dtype)[:, None])
        if tokens is not None:
            mask = jnp.pad(mask, ((0, 0), (len(parts), patches)), constant_values=True)
            parts.append(tokens)
        prefix = jnp.concatenate(parts, 1)  # [B, M, D]
        positions = self.param("token_positions", layers.small_normal, prefix.shape[1:])
        return prefix + positions.astype(dtype), mask

    def _blocks(self, h, mask):
        """All blocks; outputs of the first half are the long skips of the second, in reverse."""
        half = self.dim("depth") // 2

        def run(first, h, skips, scan=None):
            numbers = range(first, first + len(skips))
            return self.run_blocks(Block, numbers, h, skips, (mask,), scan)

        h, skips = run(0, h, [None] * half)
        h, _ = run(half, h, [None], scan=False)
        return run(half + 1, h, skips[::-1])[0]

    def _pixels(self, h, height, width, channels):
        """The tokens [B, N, D] as float32 images [B, H, W, channels]; initially zero."""
        init = layers.small_normal if self.final_conv else layers.zeros
        out = layers.Dense(
            self.patch**2 * channels, kernel_init=init, dtype=jnp.dtype(self.dtype), name="head"
        )(h)
        out = layers.unpatchify(out.astype(jnp.float32), self.patch, height, width)
        if self.final_conv:
            out = nn.Conv(channels, (3, 3), kernel_init=layers.zeros, name="final_conv")(out)
        return out
