"""The autoencoder of Stable Diffusion (arXiv:2112.10752), as diffusers' AutoencoderKL stores it.

The network is `models/autoencoder.py`, whose options are the whole config. The scaling factor of
the latents is not in the file: 0.18215 is Stable Diffusion's. Older files name the layers of the
attention differently; both are read, and written with the same names.
"""

from vitdiff_jax.interop import rules as make
from vitdiff_jax.interop.rules import Constant, NetworkSpec, Rule, Shapes

SOURCE = "https://huggingface.co/stabilityai/sd-vae-ft-mse"
LICENCE = (
    "MIT for sd-vae-ft-mse and sd-vae-ft-ema; CreativeML OpenRAIL-M, which restricts uses, as a"
    " part of Stable Diffusion 1.x"
)
PREFIXES = ("vae.", "first_stage_model.")

ATTENTION = {  # old_names -> our names -> theirs
    False: dict(q="to_q", k="to_k", v="to_v", out="to_out.0"),
    True: dict(q="query", k="key", v="value", out="proj_attn"),
}


def read(shapes: Shapes) -> NetworkSpec:
    """config["autoencoder"] has the options of the network; shape is that of the smallest image."""
    levels = make.count(shapes, "encoder.down_blocks.")
    names = [f"encoder.down_blocks.{i}.resnets.0.conv1.weight" for i in range(levels)]
    options = dict(
        channels=tuple(make.sizes(shapes, name, 4)[0] for name in names),
        blocks=make.count(shapes, "encoder.down_blocks.0.resnets."),
        latent_channels=make.sizes(shapes, "decoder.conv_in.weight", 4)[1],
    )
    old = "encoder.mid_block.attentions.0.query.weight" in shapes
    side = 2 ** (levels - 1)
    return NetworkSpec(dict(autoencoder=options, old_names=old), (side, side, 3), {})


def rules(spec: NetworkSpec) -> list[Rule | Constant]:
    """The rules of all tensors."""
    options = spec.config["autoencoder"]
    channels, blocks, latent = (options[k] for k in ("channels", "blocks", "latent_channels"))
    names = ATTENTION[spec.config.get("old_names", False)]
    levels, top = len(channels), channels[-1]
    found_rules: list[Rule | Constant] = [
        *make.conv("quant_conv", "to_moments", (1, 1), 2 * latent, 2 * latent),
        *make.conv("post_quant_conv", "from_latent", (1, 1), latent, latent),
        *_ends("encoder", 3, channels[0], top, 2 * latent),
        *_ends("decoder", latent, top, channels[0], 3),
    ]
    for half in ("encoder", "decoder"):
        found_rules += _middle(f"{half}.mid_block", f"{half}/middle", top, names)
    for i, width in enumerate(channels):
        down, up = f"encoder.down_blocks.{i}", f"decoder.up_blocks.{levels - 1 - i}"
        below, above = channels[max(i - 1, 0)], channels[min(i + 1, levels - 1)]
        for j in range(blocks):
            ours = f"encoder/level_{i}_block_{j}"
            found_rules += _block(f"{down}.resnets.{j}", ours, width if j else below, width)
        for j in range(blocks + 1):
            ours = f"decoder/level_{i}_block_{j}"
            found_rules += _block(f"{up}.resnets.{j}", ours, width if j else above, width)
        if i < levels - 1:
            theirs = f"{down}.downsamplers.0.conv"
            found_rules += make.conv(theirs, f"encoder/halve_{i}", (3, 3), width, width)
        if i:
            theirs = f"{up}.upsamplers.0.conv"
            found_rules += make.conv(theirs, f"decoder/double_{i}", (3, 3), width, width)
    return found_rules


def _ends(half: str, inputs: int, first: int, last: int, outputs: int) -> list[Rule]:
    return [
        *make.conv(f"{half}.conv_in", f"{half}/in", (3, 3), inputs, first),
        *make.norm(f"{half}.conv_norm_out", f"{half}/out/norm", last),
        *make.conv(f"{half}.conv_out", f"{half}/out/conv", (3, 3), last, outputs),
    ]


def _block(theirs: str, ours: str, inputs: int, outputs: int) -> list[Rule]:
    rules = [
        *make.norm(f"{theirs}.norm1", f"{ours}/norm1", inputs),
        *make.conv(f"{theirs}.conv1", f"{ours}/conv1", (3, 3), inputs, outputs),
        *make.norm(f"{theirs}.norm2", f"{ours}/norm2", outputs),
        *make.conv(f"{theirs}.conv2", f"{ours}/conv2", (3, 3), outputs, outputs),
    ]
    if inputs != outputs:
        rules += make.conv(f"{theirs}.conv_shortcut", f"{ours}/shortcut", (1, 1), inputs, outputs)
    return rules


def _middle(theirs: str, ours: str, width: int, names: dict[str, str]) -> list[Rule]:
    """Two blocks with single-head attention in between."""
    layers, attention = f"{theirs}.attentions.0", f"{ours}/attention"
    rules = [
        *_block(f"{theirs}.resnets.0", f"{ours}/block_0", width, width),
        *make.norm(f"{layers}.group_norm", f"{ours}/norm", width),
        *_block(f"{theirs}.resnets.1", f"{ours}/block_1", width, width),
    ]
    for letter in "qkv":
        layer, part = f"{layers}.{names[letter]}", f"{attention}/{letter}"
        rules += make.copied(f"{layer}.weight", f"{part}_kernel", (width, width))
        rules += make.copied(f"{layer}.bias", f"{part}_bias", (width,))
    return [
        *rules,
        Rule(
            f"{layers}.{names['out']}.weight", (width, width), (f"{attention}/out_kernel",),
            lambda a: (a.T,), lambda a: a.T,
        ),
        *make.copied(f"{layers}.{names['out']}.bias", f"{attention}/out_bias", (width,)),
    ]  # fmt: skip
