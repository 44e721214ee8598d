"""ViT by what is its own; `parity` has JiT itself, and `test_denoisers.py` the rest."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import tiny_models
from tests.models.tiny_models import DROPPED, SHAPE, count, denoiser, inputs, param_shapes, stacked
from tests.parts import quick
from vitdiff_jax.models.vit import Model

compiled = functools.partial(tiny_models.compiled, "vit")
tiny_params = functools.partial(tiny_models.tiny_params, "vit")


@pytest.mark.parametrize(("size", "published"), [("B", 131e6), ("L", 459e6), ("H", 953e6)])
def test_sizes_are_the_published_ones(size, published):
    """Parameters of JiT-B/16, L/16 and H/16 (arXiv:2511.13720, table 4), to 1 %."""
    model = Model(conditions={"label": (1000,)}, size=size, scan=True)
    assert abs(count(model, (256, 256, 3)) / published - 1) < 0.01


def without_blocks(params, numbers):
    """Blocks that are all zero have zero gates: nothing in them matters."""
    names = {f"block_{i}" for i in numbers}
    return {k: jax.tree.map(jnp.zeros_like, v) if k in names else v for k, v in params.items()}


def rolled():
    """The parameters of the network with dropout, for `scan`."""
    return stacked(tiny_params(**DROPPED), param_shapes(denoiser("vit", scan=True, **DROPPED)))


@pytest.mark.slow
@pytest.mark.parametrize("scan", quick([True], [False, True]))
def test_dropout_is_in_the_middle_half_of_the_blocks(scan):
    """Blocks 1 and 2 of 4, as in JiT: it changes the images through these and no others."""
    apply, params = compiled(scan=scan, **DROPPED), tiny_params(**DROPPED)
    wanted = param_shapes(denoiser("vit", scan=scan, **DROPPED))
    keys = jax.random.split(jax.random.key(0), 3)
    for off, matters in (((1, 2), False), ((0, 2, 3), True), ((0, 1, 3), True)):
        some = stacked(without_blocks(params, off), wanted)
        dropped, plain = apply(some, *inputs(), keys), apply(some, *inputs(), None)
        # Two programs, which may round differently.
        assert (np.abs(np.asarray(dropped) - np.asarray(plain)).max() > 1e-4) == matters


def test_dropout_is_off_without_keys_and_without_a_rate():
    """None is sampling; and keys always come in training, also where the rate is 0."""
    keys, params = jax.random.split(jax.random.key(0), 3), rolled()
    plain = np.asarray(compiled(scan=True, **DROPPED)(params, *inputs(), None))
    rateless = compiled(scan=True, **DROPPED | dict(dropout=0.0))(params, *inputs(), keys)
    np.testing.assert_allclose(rateless, plain, atol=1e-6)


def test_dropout_belongs_to_the_example():
    """One example's mask is its key's, in any batch: results do not depend on the devices."""
    apply, params = compiled(scan=True, **DROPPED), rolled()
    (x, time, cond), keys = inputs(), jax.random.split(jax.random.key(0), 3)
    whole = np.asarray(apply(params, x, time, cond, keys))
    part = apply(params, x[1:2], time[1:2], {"label": cond["label"][1:2]}, keys[1:2])
    np.testing.assert_allclose(part, whole[1:2], atol=1e-5)
    other = apply(params, x, time, cond, jax.random.split(jax.random.key(1), 3))
    assert (abs(np.asarray(other) - whole).max((1, 2, 3)) > 1e-3).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(heads=3), "heads: 3 does not divide the width 16"),
        (dict(heads=8), "heads: .* = 2 is not a multiple of 4"),
        (dict(depth=0), "depth: 0"),
        (dict(bottleneck=-1), "bottleneck: -1"),
        (dict(class_tokens=-1), "class_tokens: -1"),
        (dict(class_tokens_from=-1), "class_tokens_from: -1"),
        (dict(mlp_ratio=0.0), "mlp_ratio: 0.0"),
        (dict(mlp_ratio=-4.0), "mlp_ratio: -4.0"),
        (dict(size="XL"), "size: 'XL' is not one of S, B, L, H"),
        (dict(dropout=1.0), "dropout: 1.0"),
        (dict(dropout=-0.1), "dropout: -0.1"),
    ],
)
def test_check_names_the_option(options, message):
    """One line that starts with the key, before anything is compiled."""
    with pytest.raises(ValueError, match=f"^{message}"):
        denoiser("vit", **options).check(SHAPE)
