"""U-ViT, a Vision Transformer with the long skips of a U-Net (arXiv:2209.12152).

    [condition, time, text, patches] + learned positions -> blocks -> norm -> patches -> 3x3 conv

Everything that the network is told is a token. A block is h += Attention(LN(h)), then the same
with a feed-forward layer. Of depth + 1 blocks, the one in the middle stands alone; each of those
after it first takes in the tokens of its mirror image before it: h = Linear(concat(h, skip)).

Sizes have the published names (S/4 on CelebA-64, M/4 and L/4 on ImageNet-64; S/2, S-deep/2, L/2 and
H/2 on latents). Unlike the published network, this one starts as the constant 0, as all denoisers
here: the last layer, and only that, starts at zero, and from its first step on it lets gradients
through to all others.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitdiff_jax.models import attention as attention_lib
from vitdiff_jax.models import conditions, layers
from vitdiff_jax.models.conditions import Sizes

SIZES = {
    "S": dict(width=512, depth=12, heads=8),
    "S-deep": dict(width=512, depth=16, heads=8),
    "M": dict(width=768, depth=16, heads=12),
    "L": dict(width=1024, depth=20, heads=16),
    "H": dict(width=1152, depth=28, heads=16),
}
EPSILON = 1e-5  # of LayerNorm


def waves(time: jax.Array, width: int) -> jax.Array:
    """A scalar per example [B] as [B, width]: cosines, then sines, of 10000^(-i / (width/2)) t."""
    half = width // 2
    angle = time[:, None] * jnp.exp(-math.log(10000.0) * jnp.arange(half) / half)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


class Norm(nn.Module):
    """LayerNorm over the last axis, with a scale and a shift."""

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, h.shape[-1:])
        return layers.layer_norm(h, scale, self.param("bias", layers.zeros, h.shape[-1:]), EPSILON)


class Block(nn.Module):
    """One transformer block on tokens h [B, N, D]; `skip` [B, N, D] or None: no long skip."""

    heads: int
    hidden: int
    dtype: jnp.dtype
    attention_by: str

    @nn.compact
    def __call__(self, h, skip, mask):
        """(tokens, the same as a skip for a later block, or None); mask [B, N] or None."""
        if skip is not None:
            both = jnp.concatenate([h, skip], -1)  # [B, N, 2D]
            h = layers.Dense(
                h.shape[-1], kernel_init=layers.small_normal, dtype=self.dtype, name="skip"
            )(both)
        attention = attention_lib.Attention(
            self.heads, self.dtype, bias=False, by=self.attention_by, name="attention"
        )
        h = h + attention(Norm(name="norm1")(h), None, mask)
        feed_forward = layers.FeedForward(self.hidden, self.dtype, tanh=False, name="feed_forward")
        h = h + feed_forward(Norm(name="norm2")(h))
        return h, h if skip is None else None


class Model(nn.Module):
    """The denoiser. `conditions` comes from the data set ({}: unconditional), see `conditions.py`.

    size: S, S-deep, M, L or H; width, depth and heads replace its values. depth is even: half of
        the blocks come before the one in the middle, which does not count.
    final_conv: a 3x3 convolution over the pixels at the end, against the borders of patches.
    learned_sigma: twice the channels come out: the prediction, then what stands for its variance.
    dtype: of the matrix products, "float32" or "bfloat16"; parameters are always float32.
    scan: roll the blocks into two compiled bodies: faster to compile, slower to run on a TPU.
    remat: "none", "full" or "dots": how much of a block the backward pass computes again.
    attention: what computes it: "auto", "xla", "pallas" or "cudnn", see `attention.py`.
    text_width, text_depth: of the text encoder that is trained along, where there is text.
    """

    conditions: Sizes
    size: str = "S"
    patch: int = 4
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    mlp_ratio: float = 4.0
    final_conv: bool = True
    learned_sigma: bool = False
    dtype: str = "float32"
    scan: bool = False
    remat: str = "none"
    attention: str = "auto"
    text_width: int = 256
    text_depth: int = 4

    def dim(self, name: str) -> int:
        """A dimension: as given, else that of the size."""
        given = getattr(self, name)
        return SIZES[self.size][name] if given is None else given

    def block_counts(self) -> dict[str, int]:
        """How many blocks of each kind there are: pairs that a long skip joins."""
        return {"pair": self.dim("depth") // 2}

    def with_block_counts(self, counts: dict[str, int]) -> "Model":
        """The same with so many blocks of each kind."""
        return self.clone(depth=2 * counts["pair"])

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raise `ValueError("<option>: what is wrong")` where options and images do not fit."""
        layers.check_choices(
            size=(self.size, SIZES),
            remat=(self.remat, layers.REMAT),
            dtype=(self.dtype, ("float32", "bfloat16")),
            attention=(self.attention, attention_lib.CHOICES),
        )
        width, depth, heads = (self.dim(name) for name in ("width", "depth", "heads"))
        layers.check_least(
            patch=(self.patch, 1), width=(width, 1), depth=(depth, 0), heads=(heads, 1),
            text_width=(self.text_width, 1),
        )  # fmt: skip
        if width * self.mlp_ratio < 1:
            raise ValueError(f"mlp_ratio: {self.mlp_ratio} leaves nothing between the layers")
        conditions.check(self.conditions, self.text_width)
        if shape[0] % self.patch or shape[1] % self.patch:
            raise ValueError(
                f"patch: {self.patch} does not divide the {shape[0]}x{shape[1]} images"
            )
        if depth % 2:
            raise ValueError(f"depth: {depth} is odd; half of the blocks come before the middle")
        if width % heads:
            raise ValueError(f"heads: {heads} does not divide the width {width}")
        if width % 2:
            raise ValueError(f"width: {width} is odd; half of the time's waves are cosines")

    @nn.compact
    def __call__(
        self, x: jax.Array, time: jax.Array, cond: dict, keys: jax.Array | None = None
    ) -> jax.Array:
        """x [B, H, W, C], time [B], cond (see `conditions.py`) -> float32 [B, H, W, C or 2C].

        keys [B]: as all denoisers have them; there is no dropout here.
        """
        _, height, width, channels = x.shape
        rows, cols = height // self.patch, width // self.patch
        dim, dtype = self.dim("width"), jnp.dtype(self.dtype)

        prefix, mask = self._prefix(time, cond, rows * cols)
        x = conditions.with_hint(x, self.conditions, cond)
        h = layers.patchify(x, self.patch).astype(dtype)  # [B, N, p*p*C]
        h = layers.Dense(dim, kernel_init=layers.xavier, dtype=dtype, name="patches")(h)
        positions = self.param("positions", layers.small_normal, (rows, cols, dim))
        h = h + positions.reshape(-1, dim).astype(dtype)  # [B, N, D]
        h = jnp.concatenate([prefix, h], 1)  # [B, M + N, D]

        h = self._blocks(h, mask)
        h = Norm(name="head_norm")(h)[:, prefix.shape[1] :]  # [B, N, D]
        return self._pixels(h, height, width, channels * (2 if self.learned_sigma else 1))

    def _prefix(self, time, cond, patches):
        """The tokens before the patches, [B, M, D], and the mask of all, [B, M + patches] or None.

        Label and attributes are one token, the sum of theirs; the time is one; a text is many.
        """
        dim, dtype = self.dim("width"), jnp.dtype(self.dtype)
        embed = conditions.Embedding(
            self.conditions, dim, dtype, self.text_width, self.text_depth, name="conditions"
        )
        vector, tokens, mask = embed(cond)
        parts = [waves(time, dim).astype(dtype)[:, None]]
        if vector is not None and {"label", "attributes"} & set(self.conditions):
            parts.insert(0, vector.astype(dtype)[:, None])
        if tokens is not None:
            mask = jnp.pad(mask, ((0, 0), (len(parts), patches)), constant_values=True)
            parts.append(tokens)
        prefix = jnp.concatenate(parts, 1)  # [B, M, D]
        positions = self.param("token_positions", layers.small_normal, prefix.shape[1:])
        return prefix + positions.astype(dtype), mask

    def _blocks(self, h, mask):
        """All blocks; the first ones' tokens go into the last ones, in reverse."""
        half, heads = self.dim("depth") // 2, self.dim("heads")
        hidden = int(self.dim("width") * self.mlp_ratio)
        options = (heads, hidden, jnp.dtype(self.dtype), self.attention)

        def run(first, h, skips, scan=self.scan):
            numbers = range(first, first + len(skips))
            return layers.run_blocks(
                Block, options, numbers, h, skips, (mask,), scan=scan, remat=self.remat
            )

        h, skips = run(0, h, [None] * half)
        h, _ = run(half, h, [None], scan=False)
        return run(half + 1, h, skips[::-1])[0]

    def _pixels(self, h, height, width, channels):
        """The patches [B, N, D] as float32 images [B, H, W, channels]; starts as zero."""
        init = layers.small_normal if self.final_conv else layers.zeros
        out = layers.Dense(
            self.patch**2 * channels, kernel_init=init, dtype=jnp.dtype(self.dtype), name="head"
        )(h)
        out = layers.unpatchify(out.astype(jnp.float32), self.patch, height, width)
        if self.final_conv:
            out = nn.Conv(channels, (3, 3), kernel_init=layers.zeros, name="final_conv")(out)
        return out
