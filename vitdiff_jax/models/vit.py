"""JiT, the plain Vision Transformer on large pixel patches (arXiv:2511.13720).

    patches -> bottleneck embedding + fixed positions -> blocks -> norm -> pixels of each patch

Each block is h += gate * Attention(mod(RMSNorm(h))), then the same with a SwiGLU feed-forward,
where mod(y) = y (1 + scale) + shift and the shifts, scales and gates come from the sum of the time
and class embeddings through a layer that starts at zero (adaLN-zero): the network begins as the
constant 0. From block `class_tokens_from` on, `class_tokens` copies of the class embedding stand
before the patches ("in-context" conditioning); they are cut off before the head. Attributes are
added to the class embedding; the tokens of a text stand before the patches too.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.models import attention as attention_lib
from vitdiff_jax.models import conditions, layers
from vitdiff_jax.models.conditions import Sizes

SIZES = {  # B, L and H are the paper's; S has the dimensions of DiT-S
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
    attention_by: str

    @nn.compact
    def __call__(self, h, layer, c, angles, mask, keys):
        """`layer` is (index, dropout rate) of this block; `keys` [B] or None for no dropout.

        mask [B, N] or None: the tokens to look at.
        """
        index, rate = layer

        def drop(site):
            if keys is None:
                return lambda y: y
            site_keys = jax.vmap(lambda key: jax.random.fold_in(key, 2 * index + site))(keys)
            return lambda y: layers.dropout(y, site_keys, rate)

        def norm(y, shift, scale, name):
            weight = self.param(name, nn.initializers.ones, y.shape[-1:])
            return layers.modulate(y, weight * (1 + scale), shift)

        mod = layers.Dense(6 * h.shape[-1], kernel_init=layers.zeros, dtype=self.dtype, name="mod")
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(
            mod(nn.silu(c))[:, None], 6, -1
        )  # [B, 1, D] each
        attention = attention_lib.Attention(
            self.heads, self.dtype, by=self.attention_by, name="attention"
        )
        h = h + layers.spread(gate1, h.shape) * drop(0)(
            attention(norm(h, shift1, scale1, "norm1"), angles, mask)
        )
        feed_forward = layers.SwiGLU(self.hidden, self.dtype, name="feed_forward")
        h = h + layers.spread(gate2, h.shape) * feed_forward(
            norm(h, shift2, scale2, "norm2"), drop(1)
        )
        return h, None


class Model(nn.Module):
    """The denoiser. `conditions` comes from the data set ({}: unconditional), see `conditions.py`.

    size: S, B, L or H; width, depth, heads, bottleneck and class_tokens_from replace its values.
    dropout: rate in the middle half of the blocks (JiT-H trains with 0.2).
    dtype: of the matrix products, "float32" or "bfloat16"; parameters are always float32.
    scan: roll the blocks into one compiled body: faster to compile, slower to run on a TPU.
    remat: "none", "full" or "dots": how much of a block the backward pass computes again.
    attention: what computes it: "auto", "xla", "pallas" or "cudnn", see `attention.py`.
    text_width, text_depth: of the text encoder that is trained along, where there is text.
    """

    conditions: Sizes
    size: str = "B"
    patch: int = 16
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    bottleneck: int | None = None
    class_tokens: int = 32
    class_tokens_from: int | None = None
    mlp_ratio: float = 4.0
    dropout: float = 0.0
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
        """How many blocks of each kind there are: without and with the class tokens."""
        before = min(self.dim("class_tokens_from"), self.dim("depth"))
        return {"before": before, "after": self.dim("depth") - before}

    def with_block_counts(self, counts: dict[str, int]) -> "Model":
        """The same with so many blocks of each kind."""
        depth = counts["before"] + counts["after"]
        return self.clone(depth=depth, class_tokens_from=counts["before"])

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raise `ValueError("<option>: what is wrong")` where options and images do not fit."""
        layers.check_choices(
            size=(self.size, SIZES),
            remat=(self.remat, layers.REMAT),
            dtype=(self.dtype, ("float32", "bfloat16")),
            attention=(self.attention, attention_lib.CHOICES),
        )
        layers.check_least(
            patch=(self.patch, 1),
            width=(self.dim("width"), 1),
            depth=(self.dim("depth"), 1),
            heads=(self.dim("heads"), 1),
            bottleneck=(self.dim("bottleneck"), 1),
            text_width=(self.text_width, 1),
            text_depth=(self.text_depth, 1),
            class_tokens=(self.class_tokens, 0),
            class_tokens_from=(self.dim("class_tokens_from"), 0),
        )
        if self.dim("width") * self.mlp_ratio * 2 / 3 < 1:
            raise ValueError(f"mlp_ratio: {self.mlp_ratio} leaves nothing between the layers")
        conditions.check(self.conditions, self.text_width)
        height, width, _ = shape
        if height % self.patch or width % self.patch:
            raise ValueError(f"patch: {self.patch} does not divide the {height}x{width} images")
        if self.dim("width") % self.dim("heads"):
            raise ValueError(
                f"heads: {self.dim('heads')} does not divide the width {self.dim('width')}"
            )
        if self.dim("width") // self.dim("heads") % 4:
            raise ValueError(
                f"heads: width / heads = {self.dim('width') // self.dim('heads')} must divide by 4"
                " (two axes of rotary pairs)"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is not in [0, 1)")

    @nn.compact
    def __call__(
        self, x: jax.Array, time: jax.Array, cond: dict, keys: jax.Array | None = None
    ) -> jax.Array:
        """x [B, H, W, C], time [B], cond (see `conditions.py`) -> float32 [B, H, W, C].

        keys [B] switch dropout on (training); None switches it off.
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
        prefix, mask = self._prefix(vector, tokens, mask, rows * cols)

        x = conditions.with_hint(x, self.conditions, cond)
        h = layers.patchify(x, self.patch).astype(dtype)  # [B, N, p*p*C]
        h = layers.Dense(
            self.dim("bottleneck"), use_bias=False, kernel_init=layers.xavier, dtype=dtype,
            name="bottleneck_in",
        )(h)  # fmt: skip
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

        mod = layers.Dense(2 * dim, kernel_init=layers.zeros, dtype=dtype, name="head_mod")
        shift, scale = jnp.split(mod(nn.silu(c))[:, None], 2, -1)
        weight = self.param("head_norm", nn.initializers.ones, (dim,))
        h = layers.modulate(h, weight * (1 + scale), shift)
        out = layers.Dense(
            self.patch**2 * channels, kernel_init=layers.zeros, dtype=dtype, name="head"
        )(h)
        return layers.unpatchify(out.astype(jnp.float32), self.patch, height, width)

    def _prefix(self, vector, tokens, mask, patches):
        """What stands before the patches, [B, M, D] or None, and its and their mask, or None."""
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

    def _blocks(self, h, layer_range, c, angles, mask, keys):
        """Run blocks `layer_range` on h, unrolled or as one scanned body."""
        depth = self.dim("depth")
        middle = range(depth // 4, depth // 4 * 3)
        own = [(np.int32(i), np.float32(self.dropout * (i in middle))) for i in layer_range]
        hidden = int(self.dim("width") * self.mlp_ratio * 2 / 3)
        options = (self.dim("heads"), hidden, jnp.dtype(self.dtype), self.attention)
        return layers.run_blocks(
            Block, options, layer_range, h, own,
            (c, angles, mask, keys if self.dropout else None), scan=self.scan, remat=self.remat,
        )[0]  # fmt: skip
