"""The autoencoder of Stable Diffusion (arXiv:2112.10752), as its authors and diffusers store it.

The network is `models/autoencoder.py`, whose options are the whole config. The scaling factor of
the latents is not in the file: 0.18215 is Stable Diffusion's. `LAYOUTS` are the names of diffusers'
AutoencoderKL, today's and older ones, and of the authors' code (CompVis/latent-diffusion, as in
U-ViT's autoencoder_kl.pth and in checkpoints of Stable Diffusion); they are written as they came.
"""

import dataclasses

from vitdiff_jax.interop import rules as make
from vitdiff_jax.interop.rules import Constant, NetworkSpec, Rule, Shapes

SOURCE = "https://huggingface.co/stabilityai/sd-vae-ft-mse"
LICENCE = (
    "MIT for sd-vae-ft-mse and sd-vae-ft-ema; CreativeML OpenRAIL-M, which restricts uses, as a"
    " part of Stable Diffusion 1.x"
)
ANCHOR = "encoder.conv_in.weight"
EXTRAS = ("loss.",)  # the discriminator and LPIPS of training


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names of one code base; i: the level, 0 is the finest, of n; j: the block of the level."""

    down: str = "encoder.down_blocks.{i}.resnets.{j}"
    up: str = "decoder.up_blocks.{above}.resnets.{j}"  # above: levels above this one
    halve: str = "encoder.down_blocks.{i}.downsamplers.0.conv"
    double: str = "decoder.up_blocks.{above}.upsamplers.0.conv"
    shortcut: str = "conv_shortcut"
    norm_out: str = "conv_norm_out"
    middle: tuple[str, str] = ("mid_block.resnets.0", "mid_block.resnets.1")
    attention: str = "mid_block.attentions.0"
    norm: str = "group_norm"
    layers: tuple[str, str, str, str] = ("to_q", "to_k", "to_v", "to_out.0")
    convolutions: bool = False
    """Whether the layers of the attention are 1x1 convolutions."""


LAYOUTS = {
    "diffusers": Layout(),
    "old diffusers": Layout(layers=("query", "key", "value", "proj_attn")),
    "compvis": Layout(
        "encoder.down.{i}.block.{j}", "decoder.up.{i}.block.{j}",
        "encoder.down.{i}.downsample.conv", "decoder.up.{i}.upsample.conv", "nin_shortcut",
        "norm_out", ("mid.block_1", "mid.block_2"), "mid.attn_1", "norm",
        ("q", "k", "v", "proj_out"), True,
    ),
}  # fmt: skip


def read(shapes: Shapes) -> NetworkSpec:
    """config["autoencoder"] has the options of the network; shape is that of the smallest image."""
    old = "encoder.mid_block.attentions.0.query.weight" in shapes
    compvis = "encoder.mid.attn_1.q.weight" in shapes
    name = "compvis" if compvis else "old diffusers" if old else "diffusers"
    first = LAYOUTS[name].down
    levels = make.count(shapes, first.partition("{i}")[0])
    names = [f"{first.format(i=i, j=0)}.conv1.weight" for i in range(levels)]
    options = dict(
        channels=tuple(make.sizes(shapes, name, 4)[0] for name in names),
        blocks=make.count(shapes, first.format(i=0, j="").removesuffix(".") + "."),
        latent_channels=make.sizes(shapes, "decoder.conv_in.weight", 4)[1],
    )
    side = 2 ** (levels - 1)
    return NetworkSpec(dict(autoencoder=options, layout=name), (side, side, 3), {})


def rules(spec: NetworkSpec) -> list[Rule | Constant]:
    """The rules of all tensors."""
    options, layout = spec.config["autoencoder"], LAYOUTS[spec.config.get("layout", "diffusers")]
    channels, blocks, latent = (options[k] for k in ("channels", "blocks", "latent_channels"))
    levels, top = len(channels), channels[-1]
    found_rules: list[Rule | Constant] = [
        *make.conv("quant_conv", "to_moments", (1, 1), 2 * latent, 2 * latent),
        *make.conv("post_quant_conv", "from_latent", (1, 1), latent, latent),
        *_ends(layout, "encoder", 3, channels[0], top, 2 * latent),
        *_ends(layout, "decoder", latent, top, channels[0], 3),
    ]
    for half in ("encoder", "decoder"):
        found_rules += _middle(layout, half, top)
    for i, width in enumerate(channels):
        below, higher = channels[max(i - 1, 0)], channels[min(i + 1, levels - 1)]
        for half, name, inputs, count in (
            ("encoder", layout.down, below, blocks), ("decoder", layout.up, higher, blocks + 1),
        ):  # fmt: skip
            for j in range(count):
                theirs = name.format(i=i, j=j, above=levels - 1 - i)
                ours = f"{half}/level_{i}_block_{j}"
                found_rules += _block(layout, theirs, ours, width if j else inputs, width)
        if i < levels - 1:
            theirs = layout.halve.format(i=i)
            found_rules += make.conv(theirs, f"encoder/halve_{i}", (3, 3), width, width)
        if i:
            theirs = layout.double.format(i=i, above=levels - 1 - i)
            found_rules += make.conv(theirs, f"decoder/double_{i}", (3, 3), width, width)
    return found_rules


def _ends(
    layout: Layout, half: str, inputs: int, first: int, last: int, outputs: int
) -> list[Rule]:
    return [
        *make.conv(f"{half}.conv_in", f"{half}/in", (3, 3), inputs, first),
        *make.norm(f"{half}.{layout.norm_out}", f"{half}/out/norm", last),
        *make.conv(f"{half}.conv_out", f"{half}/out/conv", (3, 3), last, outputs),
    ]


def _block(layout: Layout, theirs: str, ours: str, inputs: int, outputs: int) -> list[Rule]:
    rules = [
        *make.norm(f"{theirs}.norm1", f"{ours}/norm1", inputs),
        *make.conv(f"{theirs}.conv1", f"{ours}/conv1", (3, 3), inputs, outputs),
        *make.norm(f"{theirs}.norm2", f"{ours}/norm2", outputs),
        *make.conv(f"{theirs}.conv2", f"{ours}/conv2", (3, 3), outputs, outputs),
    ]
    if inputs != outputs:
        shortcut = f"{theirs}.{layout.shortcut}"
        rules += make.conv(shortcut, f"{ours}/shortcut", (1, 1), inputs, outputs)
    return rules


def _middle(layout: Layout, half: str, width: int) -> list[Rule]:
    """Two blocks with single-head attention in between."""
    ours, theirs = f"{half}/middle", f"{half}.{layout.attention}"
    rules = [
        *_block(layout, f"{half}.{layout.middle[0]}", f"{ours}/block_0", width, width),
        *make.norm(f"{theirs}.{layout.norm}", f"{ours}/norm", width),
        *_block(layout, f"{half}.{layout.middle[1]}", f"{ours}/block_1", width, width),
    ]
    shape = (width, width, 1, 1) if layout.convolutions else (width, width)
    for letter, name in zip(("q", "k", "v", "out"), layout.layers, strict=True):
        part, axes = f"{ours}/attention/{letter}", (1, 0) if letter == "out" else (0, 1)
        rules.append(Rule(  # [out, in]; ours is [in, out] for the last layer
            f"{theirs}.{name}.weight", shape, (f"{part}_kernel",),
            lambda a, axes=axes: (a.reshape(width, width).transpose(axes),),
            lambda a, axes=axes: a.transpose(axes).reshape(shape),
        ))  # fmt: skip
        rules += make.copied(f"{theirs}.{name}.bias", f"{part}_bias", (width,))
    return rules
