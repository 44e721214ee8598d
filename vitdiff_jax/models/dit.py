"""DiT, the Diffusion Transformer with adaLN-Zero (arXiv:2212.09748); SiT is the same network.

    patches -> linear embedding + fixed positions -> blocks -> norm -> pixels of each patch

Each block is h += gate * Attention(mod(LN(h))), then the same with a feed-forward layer (GELU),
where mod(y) = y (1 + scale) + shift, LN has no parameters, and the shifts, scales and gates are
computed from the sum of the time and class embeddings by a zero-initialised layer: the network
starts as the constant 0. Attributes are added to the class embedding; text tokens are prepended to
the patches and removed before the head.

The published networks work on latents of 4 channels; any number of channels works.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitdiff_jax.models import attention as attention_lib
from vitdiff_jax.models import layers
from vitdiff_jax.models.transformer import Transformer, modulation

SIZES = {
    "S": dict(width=384, depth=12, heads=6),
    "B": dict(width=768, depth=12, heads=12),
    "L": dict(width=1024, depth=24, heads=16),
    "XL": dict(width=1152, depth=28, heads=16),
}


class Block(nn.Module):
    """One transformer block on tokens h [B, N, D], modulated by c [B, D]."""

    heads: int
    hidden: int
    dtype: jnp.dtype
    implementation: str

    @nn.compact
    def __call__(self, h, _, c, mask):
        """(tokens, None); mask [B, N] or None: True for tokens to attend to."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation(
            c, 6, h.shape[-1], self.dtype, "mod"
        )
        attention = attention_lib.Attention(
            self.heads, self.dtype, implementation=self.implementation, name="attention"
        )
        h = h + layers.broadcast_to(gate1, h.shape) * attention(
            layers.layer_norm(h, 1 + scale1, shift1), None, mask
        )
        feed_forward = layers.FeedForward(self.hidden, self.dtype, name="feed_forward")
        h = h + layers.broadcast_to(gate2, h.shape) * feed_forward(
            layers.layer_norm(h, 1 + scale2, shift2)
        )
        return h, None


class Model(Transformer):
    """The denoiser; see `Transformer` for the other options.

    size: S, B, L or XL. remat: for XL with 32 images per chip on v5e:2x2, "none", "full" and "dots"
        give MFU 0.733, 0.557, 0.651 and take 10.4, 4.4, 9.0 GiB (compiler's estimate).
    learned_sigma: output twice the channels: the prediction, then the values for its variance.
    """

    sizes: ClassVar = SIZES

    size: str = "B"
    patch: int = 2
    learned_sigma: bool = False

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raise `ValueError("<option>: ...")` where the options do not fit images of this shape."""
        super().check(shape)
        if self.dim("width") % 4:
            raise ValueError(
                f"width: {self.dim('width')} is not a multiple of 4 (2-D sine-cosine positions)"
            )

    def block_counts(self) -> dict[str, int]:
        """The number of blocks of each kind; here all are alike."""
        return {"block": self.dim("depth")}

    def with_block_counts(self, counts: dict[str, int]) -> "Model":
        """The same model with so many blocks of each kind."""
        return self.clone(depth=counts["block"])

    @nn.compact
    def __call__(
        self, x: jax.Array, time: jax.Array, cond: dict, keys: jax.Array | None = None
    ) -> jax.Array:
        """x [B, H, W, C], time [B] or [B, 2], cond (see `conditions.py`) -> [B, H, W, C or 2C].

        time: see `embed_time`. The result is float32. keys [B]: unused, as there is no dropout;
        part of the interface of denoisers.
        """
        _, height, width, channels = x.shape
        rows, cols = height // self.patch, width // self.patch
        dim, dtype = self.dim("width"), jnp.dtype(self.dtype)

        c = self.embed_time(time)
        vector, tokens, mask = self.embed(cond)
        if vector is not None:
            c = c + vector.astype(dtype)

        h = self.patches(x, cond)  # [B, N, p*p*C]
        h = layers.Dense(dim, kernel_init=layers.xavier, dtype=dtype, name="patches")(h)
        h = h + layers.sincos_positions(rows, cols, dim).astype(dtype)  # [B, N, D]
        if tokens is not None:
            mask = jnp.pad(mask, ((0, 0), (0, rows * cols)), constant_values=True)
            h = jnp.concatenate([tokens, h], 1)  # [B, M + N, D]

        depth = self.dim("depth")
        h, _ = self.run_blocks(Block, range(depth), h, [None] * depth, (c, mask))
        h = h[:, -rows * cols :]  # [B, N, D]

        shift, scale = modulation(c, 2, dim, dtype, "head_mod")
        h = layers.layer_norm(h, 1 + scale, shift)
        outputs = self.patch**2 * channels * (2 if self.learned_sigma else 1)
        out = layers.Dense(outputs, kernel_init=layers.zeros, dtype=dtype, name="head")(h)
        return layers.unpatchify(out.astype(jnp.float32), self.patch, height, width)
