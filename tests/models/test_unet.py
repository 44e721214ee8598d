"""The convolutional U-Net by what is its own; `test_denoisers.py` has the rest."""

import pytest

from tests.models.tiny_models import SHAPE, count, denoiser, param_shapes
from vitdiff_jax.models import unet
from vitdiff_jax.models.unet import Model


def test_is_as_large_as_ddpms():
    """By default the U-Net of arXiv:2006.11239 for CIFAR-10 (35.7M) with attention at 8 px too.

    DDPM attends at 16 px alone and has one addition where we have a scale and a shift.
    """
    model = Model(conditions={}, attention=(1,))
    blocks = [v for k, v in param_shapes(model, (32, 32, 3)).items() if "_" in k and "mod" in v]
    scales = sum(block["mod"]["kernel"].size for block in blocks) / 2
    assert abs((count(model, (32, 32, 3)) - scales) / 35.7e6 - 1) < 0.02


@pytest.mark.parametrize("channels", [*range(1, 40), 64, 96, 128, 1024])
def test_groups_divide_the_channels(channels):
    """At most 32 groups, and never of fewer than 4 channels (or there is one group)."""
    groups = unet.groups(channels)
    assert channels % groups == 0
    assert groups <= 32
    assert groups == 1 or channels / groups >= 4
    assert groups == 32 or channels % 128


def test_attention_is_where_it_is_chosen():
    """At the chosen sizes on both ways, and once in the middle."""
    sizes = dict(multipliers=(1, 1, 1), blocks=2)
    for chosen, wanted in (((), 0), ((0,), 5), ((1, 2), 10)):
        model = denoiser("unet", "none", attention=chosen, **sizes)
        shapes = param_shapes(model, (8, 8, 3))
        attends = {name for name, part in shapes.items() if "attention" in part}
        assert "middle_0" in attends
        assert len(attends) == wanted + 1
        assert {int(name.split("_")[1]) for name in attends - {"middle_0"}} == set(chosen)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        (dict(), (5, 6, 3), "multipliers: 2 levels downsample by 2, which does not divide"),
        (dict(multipliers=(1, 2, 2)), SHAPE, "multipliers: 3 levels downsample by 4, which"),
        (dict(multipliers=()), SHAPE, "multipliers: 0 is less than 1"),
        (dict(multipliers=(1, 0)), SHAPE, "multipliers: 0 is less than 1"),
        (dict(attention=(2,)), SHAPE, "attention: there is no level 2, only 0 to 1"),
        (dict(attention=(-1,)), SHAPE, "attention: -1"),
        (dict(blocks=0), SHAPE, "blocks: 0"),
        (dict(head_width=5), SHAPE, "head_width: 5 does not divide 16 channels"),
        (dict(head_width=0), SHAPE, "head_width: 0"),
    ],
)
def test_check_names_the_option(options, shape, message):
    """One line that starts with the key, before anything is compiled."""
    with pytest.raises(ValueError, match=f"^{message}"):
        denoiser("unet", **options).check(shape)
