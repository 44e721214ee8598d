"""U-ViT (arXiv:2209.12152) in PyTorch: the other side of our parity tests.

Written from the paper, apart from `vitdiff_jax`, so that an error would have to be made twice to
stay unseen. Parameter names and conventions are those of the published checkpoints: what loads
here is what `import` must be able to read. They differ from ours in four ways: images are
[B, C, H, W]; the projection of queries, keys and values is one matrix; the positions of all tokens
are one table; the label table has as many rows as it was made with, and no row of it is special.

Not a model to train with: layers start as PyTorch's defaults.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.parity.dit_torch import Attention, FeedForward, Patches


def waves(time: Tensor, width: int) -> Tensor:
    """[B] -> [B, width]: cosines, then sines; the i-th wave of half of them is 10000^(-i/half)."""
    half = width // 2
    frequency = 10000.0 ** torch.arange(0, -half, -1, dtype=torch.float64).div(half)
    angle = torch.outer(time, frequency.float())
    return torch.cat([angle.cos(), angle.sin()], 1)


class Block(nn.Module):
    """A block before normalisation; with `skip` it first takes in another block's tokens."""

    def __init__(self, width: int, heads: int, hidden: int, skip: bool = False):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, bias=False)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, hidden, gelu="none")
        if skip:
            self.skip_linear = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            x = self.skip_linear(torch.cat([x, skip], 2))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViT(nn.Module):
    """The whole network; shape is (height, width, channels), rows: of the label table, or None."""

    def __init__(self, shape, patch, width, depth, heads, rows=None, final_conv=True):
        super().__init__()
        self.size, self.patch, self.width = shape[:2], patch, width
        channels, hidden = shape[2], 4 * width
        self.patch_embed = Patches(channels, patch, width)
        if rows is not None:
            self.label_emb = nn.Embedding(rows, width)
        tokens = shape[0] // patch * (shape[1] // patch) + (1 if rows is None else 2)
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.in_blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth // 2))
        self.mid_block = Block(width, heads, hidden)
        self.out_blocks = nn.ModuleList(
            Block(width, heads, hidden, skip=True) for _ in range(depth // 2)
        )
        self.norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, patch**2 * channels)
        if final_conv:
            self.final_layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], time [B] as the network sees it, label [B]: [B, C, H, W]."""
        tokens = [waves(time, self.width)[:, None], self.patch_embed(x)]
        if label is not None:
            tokens.insert(0, self.label_emb(label)[:, None])
        extras = len(tokens) - 1
        h = torch.cat(tokens, 1) + self.pos_embed
        kept = []
        for block in self.in_blocks:
            h = block(h)
            kept.append(h)
        h = self.mid_block(h)
        for block in self.out_blocks:
            h = block(h, kept.pop())
        out = self.decoder_pred(self.norm(h))[:, extras:]  # [B, N, (row, column, channel)]
        out = out.unflatten(2, (self.patch**2, -1)).permute(0, 3, 2, 1).flatten(1, 2)
        image = F.fold(out, self.size, self.patch, stride=self.patch)
        return self.final_layer(image) if hasattr(self, "final_layer") else image
