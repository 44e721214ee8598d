"""U-ViT by what is its own; `parity` has U-ViT itself, and `test_denoisers.py` the rest."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.models import tiny_models
from tests.models.tiny_models import denoiser, initialised, inputs, param_shapes, stacked
from tests.parts import quick
from vitdiff_jax.models import uvit

compiled = functools.partial(tiny_models.compiled, "uvit")
tiny_params = functools.partial(tiny_models.tiny_params, "uvit")


def leaves(params):
    return flatten_dict(params, sep="/")


def with_leaf(params, path, change):
    """The parameters with the one at `path` changed by a function."""
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({**flat, path: change(jnp.asarray(flat[path]))}, sep="/")


@pytest.mark.slow
@pytest.mark.parametrize("final_conv", quick([True], [True, False]))
def test_everything_learns_from_the_second_step_on(final_conv):
    """The first step reaches the last layer alone, and opens the way to all others."""
    model = denoiser("uvit", depth=2, final_conv=final_conv)
    x, time, cond = inputs()
    params = initialised(model, (x, time, cond))
    last = "final_conv" if final_conv else "head"
    zero = [path for path, leaf in leaves(params).items() if not leaf.any()]
    assert [path for path in zero if "kernel" in path] == [f"{last}/kernel"]

    def loss(params):
        out = model.apply({"params": params}, x, time, cond)
        return ((out - x) ** 2).mean(), out

    slope = jax.jit(jax.grad(loss, has_aux=True))
    first, out = slope(params)
    assert not out.any()
    assert {path.partition("/")[0] for path, leaf in leaves(first).items() if leaf.any()} == {last}
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, first)
    assert all(leaf.any() for leaf in leaves(slope(params)[0]).values())


@pytest.mark.parametrize("scan", quick([False], [False, True]))
@pytest.mark.parametrize(("last", "seen"), [(4, {0}), (3, {0, 1, 4})])
def test_long_skips_join_mirror_images(scan, last, seen):
    """Where block `last` takes in its skip alone, nothing matters that came after the skip began.

    Block 4 mirrors block 0, and block 3 block 1; the last block itself always matters.
    """
    params = with_leaf(tiny_params(), f"block_{last}/skip/kernel", lambda k: k.at[:16].set(0.0))
    wanted = param_shapes(denoiser("uvit", scan=scan))
    apply = compiled(scan=scan)

    def images(params):
        return np.asarray(apply(stacked(params, wanted), *inputs()))

    plain = images(params)
    moves = set()
    for i in range(5):
        path = f"block_{i}/attention/out_kernel"
        moved = images(with_leaf(params, path, lambda k: 2 * k))
        if abs(moved - plain).max() > 1e-3:
            moves.add(i)
    assert moves == seen | {last}


@pytest.mark.slow
def test_every_place_has_a_position_of_its_own():
    """Those of tokens that are there: label, time, 2 of the 4 of a text of 5 bytes, vectors."""
    apply, params = compiled("all"), tiny_params("all")
    plain = apply(params, *inputs("all"))

    def moves(path, place):
        moved = with_leaf(params, path, lambda a: a.at[place].add(1.0 * jnp.arange(16)))
        return bool((abs(apply(moved, *inputs("all")) - plain) > 1e-4).any())

    assert params["positions"].shape == (2, 3, 16)
    assert all(moves("positions", (row, col)) for row in range(2) for col in range(3))
    found = [moves("token_positions", (place,)) for place in range(8)]
    assert found == [True, True, True, True, False, False, True, True]


def test_time_is_waves_cosines_first():
    """10000^(-i / 8) t for i < 8, also far out: published networks see t up to 999."""
    time = np.array([0.0, 0.37, 999.0])
    angle = np.outer(time, 10000.0 ** (-np.arange(8) / 8))
    wanted = np.concatenate([np.cos(angle), np.sin(angle)], -1)
    found = uvit.timestep_embedding(jnp.asarray(time, jnp.float32), 16)
    np.testing.assert_allclose(found, wanted, atol=3e-4)  # 999 in float32 is 6e-5 wide


@pytest.mark.slow
def test_final_convolution_mixes_neighbouring_patches():
    """With blocks that are the identity a pixel reaches one pixel beyond its patch, no farther."""
    params = leaves(tiny_params("none"))
    params |= {path: 0 * leaf for path, leaf in params.items() if "/out" in path}
    params |= {path: jnp.eye(32, 16) for path in params if path.endswith("skip/kernel")}
    x, time, _ = inputs("none", (8, 8, 3), batch=1)
    params["positions"] = jnp.zeros((4, 4, 16))
    params = unflatten_dict(params, sep="/")
    moved = x.at[0, 2, 2, 0].add(1.0)  # of the patch of rows and columns 2 and 3
    apply = compiled("none")
    apart = abs(apply(params, moved, time, {}) - apply(params, x, time, {}))[0].max(-1)
    reached = np.zeros((8, 8), bool)
    reached[1:5, 1:5] = True
    np.testing.assert_array_equal(np.asarray(apart) > 0, reached)
