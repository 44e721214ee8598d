"""JiT, LTH14/JiT (arXiv:2511.13720): ImageNet in pixel space.

The network is `models/vit.py`, stored as `net` of a `Denoiser`. A checkpoint has the parameters and
two EMAs of them. Time runs from noise (0) to data (1), as in `RectifiedFlow.network_input`.
"""

from typing import Any

from vitdiff_jax.interop import rules as make
from vitdiff_jax.interop.rules import Constant, NetworkSpec, Rule, Shapes

SOURCE = "https://github.com/LTH14/JiT"
LICENCE = "MIT"
EMAS = {"model_ema1": 0.9999, "model_ema2": 0.9996}
ANCHOR = "x_embedder.proj1.weight"
PREFIX = "net."
EXTRAS = ("feat_rope",)  # tables of the rotary embedding

SIZES = {  # published: (width, depth, heads, bottleneck, class_tokens_from)
    "S": (384, 12, 6, 128, 4),
    "B": (768, 12, 12, 128, 4),
    "L": (1024, 24, 16, 128, 8),
    "H": (1280, 32, 16, 256, 10),
}
DIMS = ("width", "depth", "heads", "bottleneck", "class_tokens_from")
GUIDANCE = {
    ("B", 16): 3.0,
    ("B", 32): 3.0,
    ("L", 16): 2.4,
    ("L", 32): 2.5,
    ("H", 16): 2.2,
    ("H", 32): 2.3,
}
"""As published by size and patch, for 0 < t < 0.9, where t = 1 is noise."""


def read(
    shapes: Shapes,
    *,
    class_tokens_from: int | None = None,
    size: tuple[int, int] | None = None,
) -> NetworkSpec:
    """class_tokens_from: needed for an unpublished size; size: (H, W), if not square."""
    bottleneck, channels, patch, _ = make.sizes(shapes, "x_embedder.proj1.weight", 4)
    width = make.sizes(shapes, "x_embedder.proj2.weight", 4)[0]
    patches = make.sizes(shapes, "pos_embed", 3)[1]
    depth = make.count(shapes, "blocks.")
    heads = width // make.sizes(shapes, "blocks.0.attn.q_norm.weight", 1)[0]
    hidden = make.sizes(shapes, "blocks.0.mlp.w3.weight", 2)[1]
    tokens = 0
    if "in_context_posemb" in shapes:
        tokens = make.sizes(shapes, "in_context_posemb", 3)[1]

    dims = (width, depth, heads, bottleneck)
    known = next((name for name, published in SIZES.items() if published[:4] == dims), None)
    model: dict[str, Any] = dict(name="vit", patch=patch)
    model |= dict(size=known) if known else dict(zip(DIMS, dims, strict=False))
    if class_tokens_from is not None:
        model["class_tokens_from"] = class_tokens_from
    elif tokens and not known:
        raise ValueError(
            "class_tokens_from: not determined by the shapes for an unpublished size; give it"
        )
    if tokens != 32:
        model["class_tokens"] = tokens
    if (ratio := make.mlp_ratio(hidden, width, 2 / 3)) != 4:
        model["mlp_ratio"] = ratio

    table = "y_embedder.embedding_table.weight"  # its last row is the null class
    conditions = make.classes(make.sizes(shapes, table, 2)[0] - 1) if table in shapes else {}
    shape = (*make.grid_of(patches, patch, size), channels)
    return NetworkSpec(_config(model, shape), shape, conditions)


def _config(model: dict[str, Any], shape: tuple[int, int, int]) -> dict[str, Any]:
    """The authors' process and sampler; the noise scale at 512 px is 2."""
    diffusion: dict[str, Any] = dict(floor=0.05, times=dict(name="logit_normal", mean=0.8, std=0.8))
    if shape[0] >= 512:
        diffusion["schedule"] = dict(name="RectifiedFlow", noise_scale=2.0)
    sample: dict[str, Any] = dict(sampler=dict(name="heun"), steps=50)
    if (published := (model.get("size", ""), model["patch"])) in GUIDANCE:
        sample |= dict(guidance=GUIDANCE[published], guidance_high=0.9)
    return dict(model=model, diffusion=diffusion, sample=sample)


def rules(spec: NetworkSpec) -> list[Rule | Constant]:
    """The rules of all tensors."""
    model = make.model_of(spec, "vit", "x", ["RectifiedFlow"])
    height, width, channels = spec.shape
    published = dict(zip(DIMS, SIZES[model.get("size") or "B"], strict=True))
    given = {name: model[name] for name in DIMS if model.get(name) is not None}
    dim, depth, heads, bottleneck, _ = (published | given).values()
    patch, tokens = model.get("patch", 16), model.get("class_tokens", 32)
    hidden = int(dim * model.get("mlp_ratio", 4.0) * 2 / 3)
    positions = make.sincos_positions(height // patch, width // patch, dim)

    found_rules: list[Rule | Constant] = [
        Constant("pos_embed", positions),
        *make.patches("x_embedder.proj1", "bottleneck_in", patch, channels, bottleneck, bias=False),
        *make.patches("x_embedder.proj2", "bottleneck_out", 1, bottleneck, dim),
        *make.linear("t_embedder.mlp.0", "time/in", 256, dim),
        *make.linear("t_embedder.mlp.2", "time/out", dim, dim),
    ]
    if "label" in spec.conditions:
        found_rules.append(make.label_table(spec.conditions, dim))
        if tokens:
            found_rules.append(
                Rule(
                    "in_context_posemb", (1, tokens, dim), ("class_positions",),
                    lambda a: (a[0],), lambda a: a[None],
                )
            )  # fmt: skip
    for i in range(depth):
        found_rules += _block(f"blocks.{i}", f"block_{i}", dim, heads, hidden)
    return [
        *found_rules,
        *make.copied("final_layer.norm_final.weight", "head_norm", (dim,)),
        *make.linear("final_layer.linear", "head", dim, patch**2 * channels),
        *make.linear("final_layer.adaLN_modulation.1", "head_mod", dim, 2 * dim),
    ]


def _block(theirs: str, ours: str, dim: int, heads: int, hidden: int) -> list[Rule]:
    size = dim // heads
    order = make.rotary_order(size)
    norms = [
        Rule(
            f"{theirs}.attn.{name}_norm.weight", (size,), (f"{ours}/attention/{name}_norm",),
            lambda a: (a[order],), lambda a: a[order.argsort()],
        )
        for name in "qk"
    ]  # fmt: skip
    return [
        *make.copied(f"{theirs}.norm1.weight", f"{ours}/norm1", (dim,)),
        *make.attention(f"{theirs}.attn", f"{ours}/attention", dim, heads, rotary=True),
        *norms,
        *make.copied(f"{theirs}.norm2.weight", f"{ours}/norm2", (dim,)),
        *make.linear(f"{theirs}.mlp.w12", f"{ours}/feed_forward/in", dim, 2 * hidden),
        *make.linear(f"{theirs}.mlp.w3", f"{ours}/feed_forward/out", hidden, dim),
        *make.linear(f"{theirs}.adaLN_modulation.1", f"{ours}/mod", dim, 6 * dim),
    ]
