"""DiT, facebookresearch/DiT (arXiv:2212.09748), on latents of Stable Diffusion's autoencoder.

The network is `models/dit.py` with times 0 to 999, the timesteps of `DiscreteVP`. It predicts eps
and, in as many channels, the variance (arXiv:2102.09672).
"""

from typing import Any

from vitdiff_jax.interop import rules as make
from vitdiff_jax.interop.rules import Constant, NetworkSpec, Rule, Shapes

SOURCE = "https://github.com/facebookresearch/DiT"
LICENCE = "CC BY-NC 4.0, code and weights: non-commercial use only"
ANCHOR = "x_embedder.proj.weight"
EMAS = {"ema": 0.9999}
EXTRAS = ("projectors.",)  # of REPA's training (arXiv:2410.06940)

SIZES = {  # published: (width, depth, heads)
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}


def read(
    shapes: Shapes,
    *,
    heads: int | None = None,
    size: tuple[int, int] | None = None,
    null_row: bool | None = None,
) -> NetworkSpec:
    """heads: needed for an unpublished width; size: (H, W) of the latents, if not square.

    null_row: whether the last row of the class table is the null class, needed unless it has the
    published 1001. Without it there is no guidance.
    """
    model, shape, conditions, has_null = network(shapes, heads, size, null_row)
    diffusion: dict[str, Any] = dict(
        schedule=dict(name="DiscreteVP"), prediction="eps", loss_space="eps",
        times=dict(name="discrete"),
    )  # fmt: skip
    if model.get("learned_sigma"):
        diffusion["learned_variance"] = 1000
    sampler = "ancestral_learned" if model.get("learned_sigma") else "ancestral"
    sample = dict(sampler=dict(name=sampler), grid=dict(name="respaced"), steps=250)
    return NetworkSpec(complete(model, diffusion, sample, shape, has_null), shape, conditions)


def complete(
    model: dict[str, Any],
    diffusion: dict[str, Any],
    sample: dict[str, Any],
    shape: tuple[int, int, int],
    null_row: bool,
) -> dict[str, Any]:
    """The config: the published FIDs use guidance 1.5 on three of the four channels."""
    if null_row:
        sample |= dict(guidance=1.5, guidance_channels=3)
    else:
        diffusion["label_dropout"] = 0.0
    config = dict(model=model, diffusion=diffusion, sample=sample)
    return config | (dict(latent=dict(factor=8)) if shape[2] == 4 else {})


def network(
    shapes: Shapes, heads: int | None, size: tuple[int, int] | None, null_row: bool | None
) -> tuple[dict[str, Any], tuple[int, int, int], dict[str, Any], bool]:
    """(config.model, (H, W, C), conditions, whether there is a null class) from the shapes."""
    width, channels, patch, _ = make.sizes(shapes, "x_embedder.proj.weight", 4)
    patches = make.sizes(shapes, "pos_embed", 3)[1]
    depth = make.count(shapes, "blocks.")
    hidden = make.sizes(shapes, "blocks.0.mlp.fc1.weight", 2)[0]
    outputs = make.sizes(shapes, "final_layer.linear.weight", 2)[0]
    heads = make.heads_of(width, heads, {w: h for w, _, h in SIZES.values()})

    model: dict[str, Any] = dict(name="dit", patch=patch)
    dims = (width, depth, heads)
    known = next((name for name, published in SIZES.items() if published == dims), None)
    model |= dict(size=known) if known else dict(width=width, depth=depth, heads=heads)
    if (ratio := make.mlp_ratio(hidden, width)) != 4:
        model["mlp_ratio"] = ratio
    if outputs == 2 * patch**2 * channels:
        model["learned_sigma"] = True

    conditions, has_null = {}, False
    if (table := "y_embedder.embedding_table.weight") in shapes:
        rows = make.sizes(shapes, table, 2)[0]
        has_null = make.has_null_row(rows, null_row, {1001: True})
        conditions = make.classes(rows - has_null)
    return model, (*make.grid_of(patches, patch, size), channels), conditions, has_null


def rules(spec: NetworkSpec) -> list[Rule | Constant]:
    """The rules of all tensors."""
    model = make.model_of(spec, "dit", "eps", ["DiscreteVP"])
    return network_rules(model, spec)


def network_rules(model: dict[str, Any], spec: NetworkSpec) -> list[Rule | Constant]:
    """The rules of a network with this config.model."""
    height, width, channels = spec.shape
    published = SIZES[model.get("size") or "B"]
    dims = zip(("width", "depth", "heads"), published, strict=True)
    dim, depth, heads = (model.get(name) or default for name, default in dims)
    patch = model.get("patch", 2)
    hidden = int(dim * model.get("mlp_ratio", 4.0))
    outputs = patch**2 * channels * (2 if model.get("learned_sigma") else 1)
    positions = make.sincos_positions(height // patch, width // patch, dim)

    found_rules: list[Rule | Constant] = [
        Constant("pos_embed", positions),
        *make.patches("x_embedder.proj", "patches", patch, channels, dim),
        *make.linear("t_embedder.mlp.0", "time/in", 256, dim),
        *make.linear("t_embedder.mlp.2", "time/out", dim, dim),
    ]
    if "label" in spec.conditions:
        found_rules.append(make.label_table(spec.conditions, dim, make.null_row_of(spec)))
    for i in range(depth):
        theirs, ours = f"blocks.{i}", f"block_{i}"
        found_rules += [
            *make.attention(f"{theirs}.attn", f"{ours}/attention", dim, heads),
            *make.linear(f"{theirs}.mlp.fc1", f"{ours}/feed_forward/in", dim, hidden),
            *make.linear(f"{theirs}.mlp.fc2", f"{ours}/feed_forward/out", hidden, dim),
            *make.linear(f"{theirs}.adaLN_modulation.1", f"{ours}/mod", dim, 6 * dim),
        ]
    return [
        *found_rules,
        *make.linear("final_layer.linear", "head", dim, outputs),
        *make.linear("final_layer.adaLN_modulation.1", "head_mod", dim, 2 * dim),
    ]
