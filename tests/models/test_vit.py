"""ViT by what is its own; `parity` has JiT itself, and `test_denoisers.py` the rest."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import tiny_models
from tests.models.tiny_models import DROPPED, denoiser, inputs, param_shapes, stacked
from tests.parts import quick

compiled = functools.partial(tiny_models.compiled, "vit")
tiny_params = functools.partial(tiny_models.tiny_params, "vit")


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
    """One example's mask is its key's, whatever is beside it: devices do not matter."""
    apply, params = compiled(scan=True, **DROPPED), rolled()
    (x, time, cond), keys = inputs(), jax.random.split(jax.random.key(0), 3)
    whole = np.asarray(apply(params, x, time, cond, keys))
    rows = np.array([2, 2, 0])
    part = apply(params, x[rows], time[rows], {"label": cond["label"][rows]}, keys[rows])
    np.testing.assert_allclose(part, whole[rows], atol=1e-5)
    other = apply(params, x, time, cond, jax.random.split(jax.random.key(1), 3))
    assert (abs(np.asarray(other) - whole).max((1, 2, 3)) > 1e-3).all()
