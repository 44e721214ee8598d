"""DiT, the Diffusion Transformer with adaLN-zero (arXiv:2212.09748); SiT is the same network.

    patches -> linear embedding + fixed positions -> blocks -> norm -> pixels of each patch

Each block is h += gate * Attention(mod(LN(h))), then the same with a feed-forward layer (GELU),
where mod(y) = y (1 + scale) + shift, LN has no parameters, and the shifts, scales and gates come
from the sum of the time and class embeddings through a layer that starts at zero: the network
begins as the constant 0. Attributes are added to the class embedding; the tokens of a text stand
before the patches and are cut off before the head.

The published networks see latents of 4 channels; any number of channels works.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitdiff_jax.models import attention as attention_lib
from vitdiff_jax.models import conditions, layers
from vitdiff_jax.models.conditions import Sizes

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
    attention_by: str

    @nn.compact
    def __call__(self, h, _, c, mask):
        """(tokens, None); mask [B, N] or None: the tokens to look at."""
        mod = layers.Dense(6 * h.shape[-1], kernel_init=layers.zeros, dtype=self.dtype, name="mod")
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(
            mod(nn.silu(c))[:, None], 6, -1
        )  # [B, 1, D] each
        attention = attention_lib.Attention(
            self.heads, self.dtype, by=self.attention_by, name="attention"
        )
        h = h + layers.spread(gate1, h.shape) * attention(
            layers.layer_norm(h, 1 + scale1, shift1), None, mask
        )
        feed_forward = layers.FeedForward(self.hidden, self.dtype, name="feed_forward")
        h = h + layers.spread(gate2, h.shape) * feed_forward(
            layers.layer_norm(h, 1 + scale2, shift2)
        )
        return h, None


class Model(nn.Module):
    """The denoiser. `conditions` comes from the data set ({}: unconditional), see `conditions.py`.

    size: S, B, L or XL; width, depth and heads replace its values.
    learned_sigma: twice the channels come out: the prediction, then what stands for its variance.
    dtype: of the matrix products, "float32" or "bfloat16"; parameters are always float32.
    scan: roll the blocks into one compiled body: faster to compile, slower to run on a TPU.
    remat: "none", "full" or "dots": how much of a block the backward pass computes again. (XL, 32
    images a chip, v5e:2x2: MFU 0.733, 0.557, 0.651 and 10.4, 4.4, 9.0 GiB by the compiler's count.)
    attention: what computes it: "auto", "xla", "pallas" or "cudnn", see `attention.py`.
    text_width, text_depth: of the text encoder that is trained along, where there is text.
    """

    conditions: Sizes
    size: str = "B"
    patch: int = 2
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    mlp_ratio: float = 4.0
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
            patch=(self.patch, 1), width=(width, 1), depth=(depth, 1), heads=(heads, 1),
            text_width=(self.text_width, 1), text_depth=(self.text_depth, 1),
        )  # fmt: skip
        if width * self.mlp_ratio < 1:
            raise ValueError(f"mlp_ratio: {self.mlp_ratio} leaves nothing between the layers")
        conditions.check(self.conditions, self.text_width)
        if shape[0] % self.patch or shape[1] % self.patch:
            raise ValueError(
                f"patch: {self.patch} does not divide the {shape[0]}x{shape[1]} images"
            )
        if width % heads:
            raise ValueError(f"heads: {heads} does not divide the width {width}")
        if width % 4:
            raise ValueError(f"width: {width} must divide by 4 (sines and cosines of two axes)")

    def block_counts(self) -> dict[str, int]:
        """How many blocks of each kind there are: all are alike."""
        return {"block": self.dim("depth")}

    def with_block_counts(self, counts: dict[str, int]) -> "Model":
        """The same with so many blocks of each kind."""
        return self.clone(depth=counts["block"])

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

        c = layers.TimeEmbedding(dim, dtype, name="time")(time)
        embed = conditions.Embedding(
            self.conditions, dim, dtype, self.text_width, self.text_depth, name="conditions"
        )
        vector, tokens, mask = embed(cond)
        if vector is not None:
            c = c + vector.astype(dtype)

        x = conditions.with_hint(x, self.conditions, cond)
        h = layers.patchify(x, self.patch).astype(dtype)  # [B, N, p*p*C]
        h = layers.Dense(dim, kernel_init=layers.xavier, dtype=dtype, name="patches")(h)
        h = h + layers.sincos_positions(rows, cols, dim).astype(dtype)  # [B, N, D]
        if tokens is not None:
            mask = jnp.pad(mask, ((0, 0), (0, rows * cols)), constant_values=True)
            h = jnp.concatenate([tokens, h], 1)  # [B, M + N, D]

        depth, hidden = self.dim("depth"), int(dim * self.mlp_ratio)
        h, _ = layers.run_blocks(
            Block, (self.dim("heads"), hidden, dtype, self.attention), range(depth), h,
            [None] * depth, (c, mask), scan=self.scan, remat=self.remat,
        )  # fmt: skip
        h = h[:, -rows * cols :]  # [B, N, D]

        mod = layers.Dense(2 * dim, kernel_init=layers.zeros, dtype=dtype, name="head_mod")
        shift, scale = jnp.split(mod(nn.silu(c))[:, None], 2, -1)
        h = layers.layer_norm(h, 1 + scale, shift)
        outputs = self.patch**2 * channels * (2 if self.learned_sigma else 1)
        out = layers.Dense(outputs, kernel_init=layers.zeros, dtype=dtype, name="head")(h)
        return layers.unpatchify(out.astype(jnp.float32), self.patch, height, width)
