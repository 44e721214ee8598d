"""JiT (arXiv:2511.13720) in PyTorch: the other side of our parity tests and benchmarks.

Written from the paper, apart from `vitdiff_jax`, so that an error would have to be made twice to
stay unseen. Parameter names and conventions are those of the published checkpoints: what loads
here is what `import` must be able to read. They differ from ours in five ways: images are
[B, C, H, W]; the projection of queries, keys and values is one matrix; rotary pairs are neighbours
(2i, 2i+1); "no class" is the class number `classes`; time runs from noise (0) to data (1).

Not a model to train with: layers start as PyTorch's defaults, nothing is zero, no dropout.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def waves(count: int) -> Tensor:
    """The frequencies 10000^(-i/count), i = 0 .. count-1, of every position code here."""
    return 10000.0 ** torch.arange(0, -count, -1, dtype=torch.float64).div(count)


def grid(rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """The row and the column of each patch, [rows*cols] each, in reading order."""
    row, col = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64),
        torch.arange(cols, dtype=torch.float64),
        indexing="ij",
    )
    return row.flatten(), col.flatten()


def fixed_positions(rows: int, cols: int, width: int) -> Tensor:
    """Sines and cosines of the column, then of the row: [1, rows*cols, width]."""
    row, col = grid(rows, cols)
    parts = []
    for place in (col, row):
        angle = torch.outer(place, waves(width // 4))
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, 1)[None].float()


def rotary_table(rows: int, cols: int, head_dim: int, prefix: int) -> Tensor:
    """cos and sin for each token and pair, [2, prefix + rows*cols, head_dim/2].

    The first half of the pairs follows the row, the second the column; the class tokens that
    stand in front get the angle 0.
    """
    row, col = grid(rows, cols)
    wave = waves(head_dim // 4)
    angle = torch.cat([torch.outer(row, wave), torch.outer(col, wave)], 1)
    angle = torch.cat([torch.zeros(prefix, head_dim // 2), angle])
    return torch.stack([angle.cos(), angle.sin()]).float()


def turn(x: Tensor, table: Tensor) -> Tensor:
    """Rotate neighbouring pairs of the last axis of x [B, H, N, K] by the table's angles."""
    cos, sin = table
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def mod(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x [B, N, D] scaled and shifted by [B, D] each."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class PatchEmbedder(nn.Module):
    """[B, C, H, W] -> [B, N, width] by way of `bottleneck` channels."""

    def __init__(self, channels: int, patch: int, bottleneck: int, width: int):
        super().__init__()
        self.proj1 = nn.Conv2d(channels, bottleneck, patch, stride=patch, bias=False)
        self.proj2 = nn.Conv2d(bottleneck, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj2(self.proj1(x)).flatten(2).mT


class TimeEmbedder(nn.Module):
    """[B] -> [B, width]: 128 cosines, 128 sines, two layers."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.register_buffer("waves", waves(128).float(), persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        angle = torch.outer(time, self.waves)
        return self.mlp(torch.cat([angle.cos(), angle.sin()], 1))


class LabelEmbedder(nn.Module):
    """Classes 0 .. classes-1, and `classes` for none: [B] -> [B, width]."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, label: Tensor) -> Tensor:
        return self.embedding_table(label)


class Attention(nn.Module):
    """Self-attention; queries and keys are normalised per head, then turned."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.k_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        # the 3D outputs are ordered (q or k or v, head, place in the head)
        split = self.qkv(x).unflatten(2, (3, self.heads, -1))  # [B, N, 3, H, K]
        q, k, v = (part.transpose(1, 2) for part in split.unbind(2))  # [B, H, N, K] each
        q, k = turn(self.q_norm(q), table), turn(self.k_norm(k), table)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))  # [B, N, D]


class FeedForward(nn.Module):
    """SwiGLU; the first half of w12's output is the gate."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)


class Block(nn.Module):
    """One transformer block with adaptive shifts, scales and gates from c [B, D]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.RMSNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.RMSNorm(width, eps=1e-6)
        self.mlp = FeedForward(width, int(4 * width * 2 / 3))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, h: Tensor, c: Tensor, table: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, 1)
        h = h + gate_a[:, None] * self.attn(mod(self.norm1(h), shift_a, scale_a), table)
        return h + gate_m[:, None] * self.mlp(mod(self.norm2(h), shift_m, scale_m))


class FinalLayer(nn.Module):
    """[B, N, D] -> the pixels of each patch [B, N, p*p*C], channels fastest."""

    def __init__(self, width: int, outputs: int, norm: nn.Module):
        super().__init__()
        self.norm_final = norm
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, 1)
        return self.linear(mod(self.norm_final(h), shift, scale))


class JiT(nn.Module):
    """The denoiser for images of one shape (height, width, channels); classes None: no labels."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        classes: int | None,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        bottleneck: int,
        class_tokens: int,
        class_tokens_from: int,
    ):
        super().__init__()
        rows, cols, channels = shape[0] // patch, shape[1] // patch, shape[2]
        self.rows, self.patch, self.channels = rows, patch, channels
        self.tokens = class_tokens if classes is not None and class_tokens_from < depth else 0
        self.start = class_tokens_from
        self.x_embedder = PatchEmbedder(channels, patch, bottleneck, width)
        self.t_embedder = TimeEmbedder(width)
        if classes is not None:
            self.y_embedder = LabelEmbedder(classes, width)
            if class_tokens:
                self.in_context_posemb = nn.Parameter(0.02 * torch.randn(1, class_tokens, width))
        self.register_buffer("pos_embed", fixed_positions(rows, cols, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        norm = nn.RMSNorm(width, eps=1e-6)
        self.final_layer = FinalLayer(width, patch * patch * channels, norm)
        for name, prefix in (("turns", 0), ("turns_with_tokens", self.tokens)):
            table = rotary_table(rows, cols, width // heads, prefix)
            self.register_buffer(name, table, persistent=False)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], time [B] (1 is data), label [B] (`classes`: none) -> [B, C, H, W]."""
        c = self.t_embedder(time)
        if label is not None:
            label = self.y_embedder(label)
            c = c + label
        h, table = self.x_embedder(x) + self.pos_embed, self.turns
        for number, block in enumerate(self.blocks):
            if self.tokens and number == self.start:
                h = torch.cat([label[:, None] + self.in_context_posemb, h], 1)
                table = self.turns_with_tokens
            h = block(h, c, table)
        out = self.final_layer(h[:, self.tokens :], c)
        out = out.view(len(x), self.rows, -1, self.patch, self.patch, self.channels)
        return out.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)  # [B, C, H, W]
