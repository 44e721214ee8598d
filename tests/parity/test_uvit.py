"""Our U-ViT against an independent one in PyTorch (`uvit_torch.py`): same weights, same output.

The weights are random, all of them, and come to us through `interop.families`.
"""

import numpy as np
import pytest

from vitdiff_jax.experiment.config import complete
from vitdiff_jax.interop import families
from vitdiff_jax.interop.families import uvit as family
from vitdiff_jax.models import uvit

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[parity]"')

from tests.parity.test_vit import (  # noqa: E402 - needs torch
    difference,
    gradient_difference,
    imported,
    inputs,
    random_weights,
    steps,
    tensors,
    torch_apply,
)
from tests.parity.uvit_torch import UViT  # noqa: E402

pytestmark = pytest.mark.extra

TOLERANCE = 1e-5
"""Allowed max|difference| / max|output| in float32; measured 7e-7. GELU by tanh would be 1e-4."""
SMALL = dict(patch=2, width=40, depth=4, heads=4)
CASES = {  # what is not SMALL's; rows of the label table, of which the last may be "no class"
    "no class is a class": dict(shape=(8, 8, 3), rows=8, null_row=True),
    "always a class": dict(shape=(8, 8, 3), rows=7, null_row=False),
    "unconditional": dict(shape=(6, 6, 1), heads=5),
    "wide, without convolution": dict(shape=(4, 12, 4), rows=8, null_row=True, final_conv=False),
    "tall": dict(shape=(12, 3, 4), patch=3, depth=2),
    "one block": dict(shape=(4, 4, 3), depth=2, rows=3, null_row=False),
}


def pair(shape, scan=False, rows=None, null_row=None, **options):
    """(classes, our network, theirs); classes: None without labels."""
    theirs = random_weights(UViT(shape, rows=rows, **options))
    known = dict(heads=options["heads"], size=shape[:2], null_row=null_row)
    found, ours = imported("uvit", uvit, theirs, scan, **known)
    assert found.shape == shape
    classes = rows and rows - null_row
    assert len(found.conditions.get("label", ())) == (classes or 0)
    return classes, ours, torch_apply(theirs, classes)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_output_is_uvits(case, scan):
    options = SMALL | CASES[case]
    classes, ours, theirs = pair(scan=scan, **options)
    x, _, label = inputs(options["shape"], classes)
    if options.get("null_row") is False:  # which theirs cannot be told
        label = np.where(label < 0, 0, label)
    time = steps(len(x))
    assert difference(ours(x, time, label), theirs(x, time, label)) < TOLERANCE


def test_output_is_uvits_where_tokens_are_small():
    """Of a variance like what LayerNorm adds to it: 1e-5, PyTorch's."""
    options = SMALL | dict(shape=(4, 4, 3))
    small = random_weights(UViT(**options))
    for weight in (*small.patch_embed.parameters(), small.pos_embed):
        weight.data *= 2e-3
    _, ours = imported("uvit", uvit, small, heads=4)
    x, _, _ = inputs(options["shape"], None)
    time = steps(len(x))
    assert difference(ours(x, time, None), torch_apply(small, None)(x, time, None)) < TOLERANCE


def test_gradient_is_uvits():
    options = SMALL | CASES["no class is a class"]
    classes, ours, theirs = pair(**options)
    x, _, label = inputs(options["shape"], classes)
    assert gradient_difference(ours, theirs, x, steps(3), label, channels=3) < TOLERANCE


def published(size, shape, patch, **options):
    """Their state dict at a published size, of zeros that take no memory."""
    dims = uvit.SIZES[size]
    with torch.device("meta"):
        model = UViT(shape, patch=patch, **dims, **options)
    zero = np.zeros((), np.float32)
    return {name: np.broadcast_to(zero, t.shape) for name, t in model.state_dict().items()}


PUBLISHED = {  # as in the authors' configs: what else is found
    "CIFAR-10": ("S", (32, 32, 3), 2, dict(), None),
    "CelebA-64": ("S", (64, 64, 3), 4, dict(), None),
    "ImageNet-64 M": ("M", (64, 64, 3), 4, dict(rows=1000), 0.0),
    "ImageNet-64 L": ("L", (64, 64, 3), 4, dict(rows=1000), 0.0),
    "ImageNet-256 L": ("L", (32, 32, 4), 2, dict(rows=1001), 0.15),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_are_found(name):
    """Nothing needs to be told; classes are dropped in training where their table has the row."""
    size, shape, patch, options, dropped = PUBLISHED[name]
    tensors = published(size, shape, patch, **options)
    found = family.read({name: t.shape for name, t in tensors.items()})
    assert found.config["model"] == dict(name="uvit", patch=patch, size=size)
    assert found.shape == shape
    assert len(found.conditions.get("label", ())) == (1000 if options else 0)
    assert found.config["diffusion"].get("label_dropout") == dropped
    config = complete(found.config)
    assert config.diffusion.schedule.time_scale == 999
    assert config.latent.factor == (8 if shape[2] == 4 else 1)
    assert {rule.theirs: rule.shape for rule in family.rules(found)} == {
        name: t.shape for name, t in tensors.items()
    }


def test_no_class_is_nothing_where_it_was_not_learned():
    """Its row is zero, and leaves with the way back."""
    theirs = random_weights(UViT((4, 4, 3), rows=7, **SMALL))
    found, params = families.from_torch("uvit", tensors(theirs), heads=4, null_row=False)
    table = params["conditions"]["label"]["table"]["embedding"]
    assert table.shape == (8, 40)
    assert not table[7].any()
    back = families.to_torch("uvit", found, params)
    np.testing.assert_array_equal(back["label_emb.weight"], table[:7])


def test_other_networks_of_theirs_are_refused():
    """Rather than read wrongly: with texts, or with a time of two layers."""
    state = tensors(UViT((4, 4, 3), **SMALL))
    text = state | {"context_embed.weight": np.zeros((40, 768), np.float32)}
    with pytest.raises(ValueError, match=r"^uvit: context_embed.weight: "):
        families.from_torch("uvit", text, heads=4)
    layers = state | {"time_embed.0.weight": np.zeros((160, 40), np.float32)}
    with pytest.raises(ValueError, match=r"^uvit: unknown: time_embed.0.weight"):
        families.from_torch("uvit", layers, heads=4)
    short = {
        name: tensor for name, tensor in state.items() if name != "out_blocks.1.skip_linear.bias"
    }
    with pytest.raises(ValueError, match=r"^uvit: missing: out_blocks.1.skip_linear.bias"):
        families.from_torch("uvit", short, heads=4)
