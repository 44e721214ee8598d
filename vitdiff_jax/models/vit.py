"""JiT, the plain Vision Transformer on large pixel patches (arXiv:2511.13720).

    patches -> bottleneck embedding + fixed positions -> blocks -> norm -> pixels of each patch

Each block is h += gate * Attention(mod(RMSNorm(h))), then the same with a SwiGLU feed-forward,
where mod(y) = y (1 + scale) + shift and the shifts, scales and gates are computed from the sum of
the time and class embeddings by a zero-initialised layer (adaLN-Zero): the network starts as the
constant 0. From block `class_tokens_from` on, `class_tokens` copies of the class embedding are
prepended to the patches (in-context conditioning) and removed before the head. Attributes are added
to the class embedding; text tokens are prepended to the patches too.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.models import attention as attention_lib
from vitdiff_jax.models import layers
from vitdiff_jax.models.transformer import Transformer, modulation

SIZES = {  # B, L and H as published; S has the dimensions of DiT-S
    "S": dict(width=384, depth=12, heads=6, bottleneck=128, class_tokens_from=4),
    "B": dict(width=768, depth=12, heads=12, bottleneck=128, class_tokens_from=4),
    "L": dict(width=1024, depth=24, heads=16, bottleneck=128, class_tokens_from=8),
    "H": dict(width=1280, depth=32, heads=16, bottleneck=256, class_tokens_from=10),
}


class Block(nn.Module):
    """One transformer block on tokens h [B, N, D], modulated by c [B, D]."""

    heads: int
    hidden: int
    dtype: jnp.dtype
    implementation: str

    @nn.compact
    def __call__(self, h, layer, c, angles, mask, keys):
        """layer: (index, dropout rate) of this block. keys: [B], or None for no dropout.

        mask [B, N] or None: True for tokens to attend to.
        """
        index, rate = layer

        def drop(site):
            if keys is None:
                return lambda y: y
            site_keys = jax.vmap(lambda key: jax.random.fold_in(key, 2 * index + site))(keys)
            return lambda y: layers.dropout(y, site_keys, rate)

        def norm(y, shift, scale, name):
            weight = self.param(name, nn.initializers.ones, y.shape[-1:])
            return layers.rms_norm(y, weight * (1 + scale), shift)

        shift1, scale1, gate1, shift2, scale2, gate2 = modulation(
            c, 6, h.shape[-1], self.dtype, "mod"
        )
        attention = attention_lib.Attention(
            self.heads, self.dtype, implementation=self.implementation, name="attention"
        )
        h = h + layers.broadcast_to(gate1, h.shape) * drop(0)(
            attention(norm(h, shift1, scale1, "norm1"), angles, mask)
        )
        feed_forward = layers.SwiGLU(self.hidden, self.dtype, name="feed_forward")
        h = h + layers.broadcast_to(gate2, h.shape) * feed_forward(
            norm(h, shift2, scale2, "norm2"), drop(1)
        )
        return h, None


class Model(Transformer):
    """The denoiser; see `Transformer` for the other options.

    size: S, B, L or H; bottleneck (width) and class_tokens_from override its values too.
    dropout: rate in the middle half of the blocks (JiT-H is trained with 0.2).
    """

    sizes: ClassVar = SIZES

    size: str = "B"
    patch: int = 16
    bottleneck: int | None = None
    class_tokens: int = 32
    class_tokens_from: int | None = None
    dropout: float = 0.0

    @property
    def hidden(self) -> int:
        """The width between the two layers of SwiGLU, which has three matrices instead of two."""
        return int(self.dim("width") * self.mlp_ratio * 2 / 3)

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raise `ValueError("<option>: ...")` where the options do not fit images of this shape."""
        super().check(shape)
        layers.check_minimum(
            bottleneck=(self.dim("bottleneck"), 1),
            class_tokens=(self.class_tokens, 0),
            class_tokens_from=(self.dim("class_tokens_from"), 0),
        )
        head_dim = self.dim("width") // self.dim("heads")
        if head_dim % 4:
            raise ValueError(
                f"heads: width / heads = {head_dim} is not a multiple of 4 (2-D rotary embedding)"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is not in [0, 1)")

    def block_counts(self) -> dict[str, int]:
        """The number of blocks of each kind: before and after the class tokens are prepended."""
        before = min(self.dim("class_tokens_from"), self.dim("depth"))
        return {"before": before, "after": self.dim("depth") - before}

    def with_block_counts(self, counts: dict[str, int]) -> "Model":
        """The same model with so many blocks of each kind."""
        depth = counts["before"] + counts["after"]
        return self.clone(depth=depth, class_tokens_from=counts["before"])

    @nn.compact
    def __call__(
        self, x: jax.Array, time: jax.Array, cond: dict, keys: jax.Array | None = None
    ) -> jax.Array:
        """x [B, H, W, C], time [B] or [B, 2], cond (see `conditions.py`) -> float32 [B, H, W, C].

        time: see `embed_time`. keys [B]: switch dropout on (training); None: off.
        """
        _, height, width, channels = x.shape
        rows, cols = height // self.patch, width // self.patch
        dim, dtype = self.dim("width"), jnp.dtype(self.dtype)

        c = self.embed_time(time)
        vector, tokens, mask = self.embed(cond)
        if vector is not None:
            c = c + vector.astype(dtype)
        prefix, mask = self._prefix(vector, tokens, mask, rows * cols)

        h = layers.Dense(
            self.dim("bottleneck"), use_bias=False, kernel_init=layers.xavier, dtype=dtype,
            name="bottleneck_in",
        )(self.patches(x, cond))  # fmt: skip
        h = layers.Dense(dim, kernel_init=layers.xavier, dtype=dtype, name="bottleneck_out")(h)
        h = h + layers.sincos_positions(rows, cols, dim).astype(dtype)  # [B, N, D]

        depth, start = self.dim("depth"), self.dim("class_tokens_from")
        start = depth if prefix is None else min(start, depth)
        angles = attention_lib.rotary_angles(rows, cols, dim // self.dim("heads"))
        h = self._blocks(h, range(0, start), c, angles, None, keys)
        if prefix is not None and start < depth:
            count = prefix.shape[1]
            angles = jnp.pad(angles, ((0, 0), (count, 0)))
            h = jnp.concatenate([prefix, h], 1)  # [B, count + N, D]
            h = self._blocks(h, range(start, depth), c, angles, mask, keys)
            h = h[:, count:]

        shift, scale = modulation(c, 2, dim, dtype, "head_mod")
        weight = self.param("head_norm", nn.initializers.ones, (dim,))
        h = layers.rms_norm(h, weight * (1 + scale), shift)
        out = layers.Dense(
            self.patch**2 * channels, kernel_init=layers.zeros, dtype=dtype, name="head"
        )(h)
        return layers.unpatchify(out.astype(jnp.float32), self.patch, height, width)

    def _prefix(self, vector, tokens, mask, patches):
        """The tokens before the patches [B, M, D] and the mask of all, each None where absent."""
        parts = []
        if self.class_tokens and ("label" in self.conditions or "attributes" in self.conditions):
            shape = (self.class_tokens, self.dim("width"))
            position = self.param("class_positions", layers.small_normal, shape)
            parts.append((vector[:, None] + position).astype(self.dtype))  # [B, class_tokens, D]
        if tokens is not None:
            before = sum(part.shape[1] for part in parts)
            mask = jnp.pad(mask, ((0, 0), (before, patches)), constant_values=True)
            parts.append(tokens)
        return (jnp.concatenate(parts, 1) if parts else None), mask

    def _blocks(self, h, numbers, c, angles, mask, keys):
        """Run the blocks `numbers` on h; dropout is in the middle half of all blocks."""
        depth = self.dim("depth")
        middle = range(depth // 4, depth // 4 * 3)
        own = [(np.int32(i), np.float32(self.dropout * (i in middle))) for i in numbers]
        shared = (c, angles, mask, keys if self.dropout else None)
        return self.run_blocks(Block, numbers, h, own, shared)[0]
