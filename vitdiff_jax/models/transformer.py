"""The base of the Transformer denoisers: their common options, checks and embeddings."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitdiff_jax.models import attention as attention_lib
from vitdiff_jax.models import conditions, layers
from vitdiff_jax.models.conditions import Cond, Sizes


class Transformer(nn.Module):
    """Options of every Transformer denoiser; `dit`, `uvit` and `vit` add their own.

    conditions: from the data set ({}: unconditional), see `conditions.py`.
    size: one of `sizes`; width, depth and heads override its values.
    patch: side of a patch in pixels. mlp_ratio: of the feed-forward layers.
    dtype: of the matrix products, "float32" or "bfloat16"; parameters are always float32.
    scan: compile the blocks as one scanned body: faster to compile, slower to run on a TPU.
    remat: rematerialisation of each block: "none", "full" or "dots".
    attention: "auto", "xla", "einsum", "pallas" or "cudnn", see `attention.py`.
    interval: also take the length of an interval of times, see `diffusion.average_velocity`.
    text_width, text_depth: of the jointly trained text encoder, where there is text.
    """

    sizes: ClassVar[Mapping[str, Mapping[str, int]]]
    min_depth: ClassVar[int] = 1

    conditions: Sizes
    size: str
    patch: int
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    mlp_ratio: float = 4.0
    dtype: str = "float32"
    scan: bool = False
    remat: str = "none"
    attention: str = "auto"
    interval: bool = False
    text_width: int = 256
    text_depth: int = 4

    def dim(self, name: str) -> int:
        """A dimension: the option where it is given, else the value of `size`."""
        given = getattr(self, name)
        return self.sizes[self.size][name] if given is None else given

    @property
    def hidden(self) -> int:
        """The width between the two layers of a feed-forward layer."""
        return int(self.dim("width") * self.mlp_ratio)

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raise `ValueError("<option>: ...")` where the options do not fit images of this shape."""
        layers.check_choices(
            size=(self.size, self.sizes),
            remat=(self.remat, layers.REMAT),
            dtype=(self.dtype, ("float32", "bfloat16")),
            attention=(self.attention, attention_lib.IMPLEMENTATIONS),
        )
        width, depth, heads = (self.dim(name) for name in ("width", "depth", "heads"))
        layers.check_minimum(
            patch=(self.patch, 1), width=(width, 1), depth=(depth, self.min_depth),
            heads=(heads, 1), text_width=(self.text_width, 1), text_depth=(self.text_depth, 1),
        )  # fmt: skip
        if self.hidden < 1:
            raise ValueError(f"mlp_ratio: {self.mlp_ratio} leaves no hidden units")
        conditions.check(self.conditions, self.text_width)
        if shape[0] % self.patch or shape[1] % self.patch:
            raise ValueError(
                f"patch: {self.patch} does not divide the {shape[0]}x{shape[1]} images"
            )
        if width % heads:
            raise ValueError(f"heads: {heads} does not divide the width {width}")

    def embed_time(self, time: jax.Array) -> jax.Array:
        """The embedding [B, D] of times [B], or of (time, length of the interval) [B, 2].

        That of the length, 0 where it is not given, is added and initially zero.
        """
        width, dtype = self.dim("width"), jnp.dtype(self.dtype)
        at = layers.TimeEmbedding(width, dtype, name="time")
        if not self.interval:
            if time.ndim > 1:
                raise ValueError("interval: this network takes no length of an interval")
            return at(time)
        over = layers.TimeEmbedding(width, dtype, last_init=layers.zeros, name="interval")
        pairs = time if time.ndim == 2 else jnp.stack([time, jnp.zeros_like(time)], 1)
        return at(pairs[:, 0]) + over(pairs[:, 1])

    def embed(self, cond: Cond):
        """The conditions as (vector [B, D], tokens [B, M, D], mask [B, M]), see `Embedding`."""
        return conditions.Embedding(
            self.conditions, self.dim("width"), jnp.dtype(self.dtype), self.text_width,
            self.text_depth, name="conditions",
        )(cond)  # fmt: skip

    def patches(self, x: jax.Array, cond: Cond) -> jax.Array:
        """Images [B, H, W, C], with the hint, as patches [B, N, p p C]."""
        x = conditions.with_hint(x, self.conditions, cond)
        return layers.patchify(x, self.patch).astype(self.dtype)

    def run_blocks(
        self, block: type[nn.Module], numbers: range, h, own, shared, scan: bool | None = None
    ):
        """`layers.run_blocks` with (heads, hidden, dtype, attention) as the options of a block."""
        options = (self.dim("heads"), self.hidden, jnp.dtype(self.dtype), self.attention)
        scan = self.scan if scan is None else scan
        return layers.run_blocks(
            block, options, numbers, h, own, shared, scan=scan, remat=self.remat
        )


def modulation(c: jax.Array, count: int, width: int, dtype: jnp.dtype, name: str):
    """adaLN-Zero (arXiv:2212.09748): c [B, D] to `count` arrays [B, 1, width], initially zero."""
    mod = layers.Dense(count * width, kernel_init=layers.zeros, dtype=dtype, name=name)
    return jnp.split(mod(nn.silu(c))[:, None], count, -1)
