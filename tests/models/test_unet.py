"""The convolutional U-Net by what is its own; `test_denoisers.py` has the rest."""

import pytest

from tests.models.tiny_models import count, denoiser, param_shapes
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
