"""DiT (arXiv:2212.09748) and SiT (arXiv:2401.08740) in PyTorch: the other side of parity tests.

Written from the papers, apart from `vitdiff_jax`, so that an error would have to be made twice to
stay unseen. Parameter names and conventions are those of the published checkpoints: what loads
here is what `import` must be able to read. Images are [B, C, H, W]; the projection of queries, keys
and values is one matrix; "no class" is the class number `classes`. SiT's time runs from noise (0)
to data (1), and of the channels that come out only the first half counts.

Not a model to train with: layers start as PyTorch's defaults, nothing is zero.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.parity.jit_torch import FinalLayer, LabelEmbedder, TimeEmbedder, fixed_positions, mod


class Patches(nn.Module):
    """[B, C, H, W] -> [B, N, width]."""

    def __init__(self, channels: int, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).mT


class Attention(nn.Module):
    """Multi-head self-attention (arXiv:1706.03762); U-ViT's has no bias before the product."""

    def __init__(self, width: int, heads: int, bias: bool = True):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        # the 3D outputs are ordered (q or k or v, head, place in the head)
        split = self.qkv(x).unflatten(2, (3, self.heads, -1))  # [B, N, 3, H, K]
        q, k, v = (part.transpose(1, 2) for part in split.unbind(2))  # [B, H, N, K] each
        weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))  # [B, N, D]


class FeedForward(nn.Module):
    """Two layers and a GELU: DiT's is the approximation by a tanh, U-ViT's is exact ("none")."""

    def __init__(self, width: int, hidden: int, gelu: str = "tanh"):
        super().__init__()
        self.gelu = gelu
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.gelu))


def norm(width: int) -> nn.Module:
    """LayerNorm without parameters."""
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


class Block(nn.Module):
    """One transformer block with adaptive shifts, scales and gates from c [B, D]."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm = norm(width)
        self.attn = Attention(width, heads)
        self.mlp = FeedForward(width, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, 1)
        h = h + gate_a[:, None] * self.attn(mod(self.norm(h), shift_a, scale_a))
        return h + gate_m[:, None] * self.mlp(mod(self.norm(h), shift_m, scale_m))


class DiT(nn.Module):
    """The network for latents of one shape (height, width, channels); classes None: no labels."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        classes: int | None,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        learned_sigma: bool,
    ):
        super().__init__()
        self.patch, (height, _, channels) = patch, shape
        self.rows, self.channels = height // patch, channels * (2 if learned_sigma else 1)
        self.x_embedder = Patches(channels, patch, width)
        self.t_embedder = TimeEmbedder(width)
        if classes is not None:
            self.y_embedder = LabelEmbedder(classes, width)
        positions = fixed_positions(height // patch, shape[1] // patch, width)
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch * patch * self.channels, norm(width))

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], time [B], label [B] (`classes`: none) -> [B, C or 2C, H, W]."""
        c = self.t_embedder(time)
        if label is not None:
            c = c + self.y_embedder(label)
        h = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            h = block(h, c)
        out = self.final_layer(h, c)
        out = out.view(len(x), self.rows, -1, self.patch, self.patch, self.channels)
        return out.permute(0, 5, 1, 3, 2, 4).reshape(len(x), self.channels, *x.shape[2:])


class SiT(DiT):
    """The velocity d x_t / d t of their time; channels of a learned variance are cut off."""

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], time [B] (1 is data), label [B] (`classes`: none) -> [B, C, H, W]."""
        return super().forward(x, time, label)[:, : x.shape[1]]
