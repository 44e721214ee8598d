"""U-ViT, baofff/U-ViT (arXiv:2209.12152): CIFAR-10, CelebA-64, ImageNet-64, and latents (L).

The network is `models/uvit.py` with time 999 t, on a continuous VP-SDE, or for H on a discrete one.
It predicts eps. The pixel
models of ImageNet were trained without class dropout: their table has 1000 rows and no null class.
For latents the null class is the last of 1001 rows.
"""

from typing import Any

import numpy as np

from vitdiff_jax.interop import rules as make
from vitdiff_jax.interop.rules import Constant, NetworkSpec, Rule, Shapes

SOURCE = "https://github.com/baofff/U-ViT"
LICENCE = "MIT"
ANCHOR = "patch_embed.proj.weight"

SIZES = {  # published: (width, depth, heads)
    "S": (512, 12, 8),
    "S-deep": (512, 16, 8),
    "M": (768, 16, 12),
    "L": (1024, 20, 16),
    "H": (1152, 28, 16),
}
DIMS = ("width", "depth", "heads")
HUGE = dict(name="DiscreteVP", beta_min=0.00085, beta_max=0.012, power=2.0, first=1)
"""The schedule of U-ViT-H: Stable Diffusion's betas, with timesteps 1 to 1000."""


def read(
    shapes: Shapes,
    *,
    heads: int | None = None,
    size: tuple[int, int] | None = None,
    null_row: bool | None = None,
) -> NetworkSpec:
    """heads: needed for an unpublished width; size: (H, W), if not square.

    null_row: whether the last row of the table is the null class, needed unless it has the
    published 1000 (it is not) or 1001 (it is). Without a null class there is no guidance.
    """
    if "context_embed.weight" in shapes:
        raise ValueError("context_embed.weight: models conditioned on CLIP are not supported")
    width, channels, patch, _ = make.sizes(shapes, "patch_embed.proj.weight", 4)
    tokens = make.sizes(shapes, "pos_embed", 3)[1]
    depth = 2 * make.count(shapes, "in_blocks.")
    hidden = make.sizes(shapes, "mid_block.mlp.fc1.weight", 2)[0]
    heads = make.heads_of(width, heads, {w: h for w, _, h in SIZES.values()})
    dims = (width, depth, heads)
    known = next((name for name, published in SIZES.items() if published == dims), None)
    model: dict[str, Any] = dict(name="uvit", patch=patch)
    model |= dict(size=known) if known else dict(zip(DIMS, dims, strict=True))
    if (ratio := make.mlp_ratio(hidden, width)) != 4:
        model["mlp_ratio"] = ratio
    if "final_layer.weight" not in shapes:
        model["final_conv"] = False

    conditions, rows = {}, None
    if "label_emb.weight" in shapes:
        rows = make.sizes(shapes, "label_emb.weight", 2)[0]
        null_row = make.has_null_row(rows, null_row, {1000: False, 1001: True})
        conditions = make.classes(rows - null_row)
    shape = (*make.grid_of(tokens - 1 - len(conditions), patch, size), channels)
    config = _config(model, shape, rows, null_row)
    if channels == 4:
        config["latent"] = dict(factor=8)
    return NetworkSpec(config, shape, conditions)


def _config(
    model: dict[str, Any], shape: tuple[int, int, int], rows: int | None, null_row: bool | None
) -> dict[str, Any]:
    """The authors' process, and their sampler or the closest one available."""
    diffusion: dict[str, Any] = dict(
        schedule=dict(name="LinearVP", time_scale=999.0), prediction="eps", loss_space="eps",
        times=dict(name="uniform"),
    )  # fmt: skip
    clean = 11.5  # the log-SNR at the authors' last t = 1e-4
    if model.get("size") == "H":
        diffusion |= dict(schedule=HUGE, times=dict(name="discrete"))
        clean = 7.07  # at their last t = 1e-3
    if rows is None:
        sample: dict[str, Any] = dict(sampler=dict(name="euler_maruyama"), steps=1000)
        return dict(model=model, diffusion=diffusion, sample=sample)
    dropped = 0.1 if model.get("size") == "H" else 0.15
    diffusion["label_dropout"] = dropped if null_row else 0.0
    sample = dict(
        sampler=dict(name="dpmpp_2m"), steps=50,
        grid=dict(name="uniform_logsnr", high=clean),
    )  # fmt: skip
    if null_row:  # the authors' 0.4 and 0.7 are added to 1
        sample["guidance"] = 1.7 if shape == (64, 64, 4) else 1.4
    return dict(model=model, diffusion=diffusion, sample=sample)


def rules(spec: NetworkSpec) -> list[Rule | Constant]:
    """The rules of all tensors."""
    schedule = spec.config["diffusion"].get("schedule", {})
    huge = schedule.items() >= HUGE.items()
    model, (height, width, channels) = (
        make.model_of(spec, "uvit", "eps", ["DiscreteVP" if huge else "LinearVP"]), spec.shape
    )  # fmt: skip
    published = zip(DIMS, SIZES[model.get("size") or "S"], strict=True)
    dim, depth, heads = (model.get(name) or default for name, default in published)
    patch, hidden = model.get("patch", 4), int(dim * model.get("mlp_ratio", 4.0))
    before = 2 if "label" in spec.conditions else 1

    found_rules: list[Rule | Constant] = [
        *make.patches("patch_embed.proj", "patches", patch, channels, dim),
        _positions(before, height // patch, width // patch, dim),
    ]
    if "label" in spec.conditions:
        null_row = make.null_row_of(spec)
        table = make.label_table(spec.conditions, dim, null_row, "label_emb.weight")
        found_rules.append(table)
    for i in range(depth + 1):
        half = depth // 2
        theirs = "mid_block" if i == half else f"in_blocks.{i}"
        if i > half:
            theirs = f"out_blocks.{i - half - 1}"
            found_rules += make.linear(f"{theirs}.skip_linear", f"block_{i}/skip", 2 * dim, dim)
        found_rules += _block(theirs, f"block_{i}", dim, heads, hidden)
    found_rules += make.norm("norm", "head_norm", dim)
    found_rules += make.linear("decoder_pred", "head", dim, patch**2 * channels)
    if model.get("final_conv", True):
        found_rules += make.conv("final_layer", "final_conv", (3, 3), channels, channels)
    return found_rules


def _block(theirs: str, ours: str, dim: int, heads: int, hidden: int) -> list[Rule]:
    return [
        *make.norm(f"{theirs}.norm1", f"{ours}/norm1", dim),
        *make.attention(f"{theirs}.attn", f"{ours}/attention", dim, heads, bias=False),
        *make.norm(f"{theirs}.norm2", f"{ours}/norm2", dim),
        *make.linear(f"{theirs}.mlp.fc1", f"{ours}/feed_forward/in", dim, hidden),
        *make.linear(f"{theirs}.mlp.fc2", f"{ours}/feed_forward/out", hidden, dim),
    ]


def _positions(before: int, rows: int, cols: int, dim: int) -> Rule:
    """One table of positions for all tokens; ours are separate for the patches, as an image."""
    return Rule(
        "pos_embed", (1, before + rows * cols, dim), ("token_positions", "positions"),
        lambda a: (a[0, :before], a[0, before:].reshape(rows, cols, dim)),
        lambda tokens, patches: np.concatenate([tokens, patches.reshape(-1, dim)])[None],
    )  # fmt: skip
