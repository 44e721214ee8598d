"""The convolutional U-Net by what it must be, whatever its layers do inside."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.models.test_dit import ALL, LABEL, LABEL_KEY, TEXT, all_conditions
from tests.models.test_vit import inputs, param_shapes, random_params
from vitdiff_jax.models import unet
from vitdiff_jax.models.conditions import blank
from vitdiff_jax.models.unet import Model

TINY = dict(width=8, multipliers=(1, 2), blocks=1, attention=(1,), head_width=8)
NONE = dict(attention=())
SHAPE = (4, 6, 3)


@functools.cache
def compiled(sizes=LABEL_KEY, **options):
    """(params, x, time, cond) -> images, of the tiny model with these options."""
    model = Model(conditions=dict(sizes), **TINY | options)
    return jax.jit(lambda params, *args: model.apply({"params": params}, *args))


@functools.cache
def tiny_params(sizes=LABEL_KEY, **options):
    return random_params(Model(conditions=dict(sizes), **TINY | options))


def test_is_zero_at_the_start():
    """The last layers of the blocks and of all are zero, whatever the input."""
    model = Model(conditions=ALL, learned_sigma=True, **TINY | TEXT | dict(multipliers=(1,)) | NONE)
    x, time, _ = inputs()
    init = jax.jit(model.init_with_output)
    out, variables = init(jax.random.key(0), x, time, all_conditions())
    assert not out.any()
    leaves = flatten_dict(variables["params"])
    zero = {path[-2] for path, leaf in leaves.items() if path[-1] == "kernel" and not leaf.any()}
    assert zero == {"conv2", "head"}


@pytest.mark.parametrize(
    ("shape", "sizes", "options"),
    [
        ((4, 4, 3), LABEL, dict()),
        ((8, 4, 1), LABEL, dict(multipliers=(1, 2, 3), learned_sigma=True)),
        ((3, 5, 4), {}, dict(multipliers=(1,), attention=())),
        ((4, 2, 3), {}, dict(remat="full", dtype="bfloat16", learned_sigma=True)),
        ((8, 16, 3), {}, dict(width=36, multipliers=(1, 2, 2, 2), blocks=2, head_width=64)),
    ],
)
def test_output_has_the_images_shape(shape, sizes, options):
    """Square or not, in float32 also where the matrix products are in bf16; or twice as deep."""
    model = Model(conditions=sizes, **TINY | options)
    model.check(shape)
    x, time, cond = inputs(shape)
    out = jax.eval_shape(model.init_with_output, jax.random.key(0), x, time, cond if sizes else {})[
        0
    ]
    channels = shape[2] * (2 if options.get("learned_sigma") else 1)
    assert (out.shape, out.dtype) == ((3, *shape[:2], channels), jnp.float32)


def test_is_as_large_as_ddpms():
    """By default the U-Net of arXiv:2006.11239 for CIFAR-10 (35.7M) with attention at 8 px too.

    DDPM attends at 16 px alone and has one addition where we have a scale and a shift.
    """
    model = Model(conditions={}, attention=(1,))
    count = sum(leaf.size for leaf in jax.tree.leaves(param_shapes(model, (32, 32, 3))))
    blocks = [v for k, v in param_shapes(model, (32, 32, 3)).items() if "_" in k and "mod" in v]
    scales = sum(block["mod"]["kernel"].size for block in blocks) / 2
    assert abs((count - scales) / 35.7e6 - 1) < 0.02


@pytest.mark.parametrize("channels", [*range(1, 40), 64, 96, 128, 1024])
def test_groups_divide_the_channels(channels):
    """At most 32 groups, and never of fewer than 4 channels (or there is one group)."""
    groups = unet.groups(channels)
    assert channels % groups == 0
    assert groups <= 32
    assert groups == 1 or channels / groups >= 4
    assert groups == 32 or channels % 128


@functools.cache
def gradient(**options):
    """Of a random projection of the images, with respect to all parameters."""
    model = Model(conditions=LABEL, **TINY | dict(multipliers=(1,)) | NONE | options)
    weights = np.random.default_rng(1).standard_normal((3, *SHAPE))

    def projection(params):
        return (weights * model.apply({"params": params}, *inputs())).sum()

    return jax.jit(jax.grad(projection))(random_params(model))


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_gradient(remat):
    """What is computed again is the same again."""
    plain, found = gradient(), gradient(remat=remat)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-4 * max(1, abs(one).max()))
    assert any(leaf.any() for leaf in jax.tree.leaves(plain))


def test_bfloat16_is_close_and_keeps_float32_parameters():
    """bf16 has 8 bits: convolutions are off by 0.4 %, and images by a few of these."""
    shapes = param_shapes(Model(conditions=LABEL, **TINY | dict(dtype="bfloat16")))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    plain = compiled()(tiny_params(), *inputs())
    rounded = compiled(dtype="bfloat16")(tiny_params(), *inputs())
    assert rounded.dtype == jnp.float32
    assert 0 < abs(rounded - plain).max() < 0.05 * abs(plain).max()


@pytest.mark.parametrize("changed", ["x", "time", *ALL])
def test_every_input_matters_to_its_own_image_only(changed):
    """Each pixel of an image sees what it is told and all of its image, and nothing of another's.

    So it does not depend on the batch, either: a part of it gives the same images.
    """
    key = dict(sizes=tuple(ALL.items()), **TEXT)
    apply, params = compiled(**key), tiny_params(**key)
    (x, time, _), cond = inputs(), all_conditions()
    plain = np.asarray(apply(params, x, time, cond))
    one = apply(params, x[1:2], time[1:2], {name: a[1:2] for name, a in cond.items()})
    np.testing.assert_allclose(one, plain[1:2], atol=1e-4 * abs(plain).max())
    if changed == "x":
        x = x.at[1, 0, 0, 0].add(1.0)
    elif changed == "time":
        time = time.at[1].add(0.5)
    else:
        none = blank(ALL, 3, *SHAPE[:2])[changed]
        cond[changed] = cond[changed].at[1].set(none[1].astype(cond[changed].dtype))
    moved = abs(np.asarray(apply(params, x, time, cond)) - plain)
    assert moved[[0, 2]].max() == 0
    assert (moved[1].max(-1) > 1e-4 * abs(plain).max()).all()  # every pixel


def test_attention_is_where_it_is_chosen():
    """At the chosen sizes on both ways, and once in the middle."""
    sizes = dict(multipliers=(1, 1, 1), blocks=2)
    for chosen, wanted in (((), 0), ((0,), 5), ((1, 2), 10)):
        shapes = param_shapes(
            Model(conditions={}, **TINY | sizes | dict(attention=chosen)), (8, 8, 3)
        )
        attends = {name for name, part in shapes.items() if "attention" in part}
        assert "middle_0" in attends
        assert len(attends) == wanted + 1
        assert {int(name.split("_")[1]) for name in attends - {"middle_0"}} == set(chosen)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        (dict(), (5, 6, 3), "multipliers: 1 halvings do not divide the 5x6 images"),
        (dict(multipliers=(1, 2, 2)), SHAPE, "multipliers: 2 halvings do not divide the 4x6"),
        (dict(multipliers=()), SHAPE, "multipliers: 0 is less than 1"),
        (dict(multipliers=(1, 0)), SHAPE, "multipliers: 0 is less than 1"),
        (dict(attention=(2,)), SHAPE, "attention: 2 is more than the 1 halvings"),
        (dict(attention=(-1,)), SHAPE, "attention: -1"),
        (dict(blocks=0), SHAPE, "blocks: 0"),
        (dict(width=0), SHAPE, "width: 0"),
        (dict(head_width=5), SHAPE, "head_width: 5 does not divide 16 channels"),
        (dict(head_width=0), SHAPE, "head_width: 0"),
        (dict(remat="some"), SHAPE, "remat: 'some' is none of none, full, dots"),
        (dict(dtype="float16"), SHAPE, "dtype: 'float16' is none of float32, bfloat16"),
        (dict(conditions={"text": (18,)}), SHAPE, "conditions: "),
    ],
)
def test_check_names_the_option(options, shape, message):
    """One line that starts with the key, before anything is compiled."""
    with pytest.raises(ValueError, match=f"^{message}"):
        Model(**dict(conditions=LABEL) | TINY | options).check(shape)
