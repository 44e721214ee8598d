"""Every denoiser of the folder by what all of them must be, whatever their layers do inside.

A new one is tested by being there. What one network has and others have not is in its own file.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.models.tiny_models import (
    ALL,
    CLASSES,
    CONSTANT,
    DENOISERS,
    DROPPED,
    SHAPE,
    TINY,
    compiled,
    denoiser,
    inputs,
    param_shapes,
    random_params,
    shape_of,
    stacked,
    tiny_params,
)
from tests.parts import quick
from vitdiff_jax.experiment import config
from vitdiff_jax.models.conditions import null_cond

FIELDS = {name: [f.name for f in dataclasses.fields(Model)] for name, Model in DENOISERS.items()}
ZERO = {  # whose kernels start at zero
    "vit": {"mod", "head_mod", "head"},
    "dit": {"mod", "head_mod", "head"},
    "uvit": {"final_conv"},
    "unet": {"conv2", "head"},
}
SHAPES = [  # (images, what is told, options), of these those that a denoiser has
    ((4, 4, 3), "label", dict()),
    ((8, 4, 1), "label", dict(learned_sigma=True)),
    ((2, 6, 4), "label", dict(learned_sigma=True, scan=True)),
    ((4, 2, 3), "none", dict(learned_sigma=True, remat="full", dtype="bfloat16")),
]
PATCHES = [
    ((8, 4, 1), "label", dict(patch=4, class_tokens_from=0, learned_sigma=True)),
    ((6, 3, 3), "none", dict(patch=3, learned_sigma=True, remat="full", dtype="bfloat16")),
]
PUBLISHED = dict(width=None, depth=None, heads=None, scan=True)
OWN_SHAPES = {
    "vit": [
        *PATCHES,
        ((2, 6, 4), "label", dict(class_tokens=0, scan=True)),
        ((4, 4, 3), "none", dict(size="S", bottleneck=None, class_tokens_from=None) | PUBLISHED),
    ],
    "dit": [*PATCHES, ((4, 4, 3), "none", dict(size="S") | PUBLISHED)],
    "uvit": [
        *PATCHES,
        ((2, 6, 4), "label", dict(final_conv=False, scan=True)),
        ((4, 4, 3), "none", dict(size="S-deep") | PUBLISHED),
        ((4, 4, 3), "none", dict(depth=0, scan=True)),
    ],
    "unet": [
        ((8, 4, 1), "label", dict(multipliers=(1, 2, 3), learned_sigma=True)),
        ((3, 5, 4), "none", dict(multipliers=(1,), attention=())),
        ((8, 16, 3), "none", dict(width=36, multipliers=(1, 2, 2, 2), blocks=2, head_width=64)),
    ],
}
SCANNED = {  # options with which it is tried to roll the blocks up
    "vit": [dict(class_tokens_from=0), dict(), dict(class_tokens_from=2)],
    "uvit": [dict(), dict(depth=2)],
}
ROLLED = {"vit": DROPPED}  # options with which remat is tried where there is `scan`,
UNROLLED = {  # and without it; also with which bfloat16 is
    "vit": dict(depth=1, class_tokens_from=0),
    "dit": dict(depth=1),
    "uvit": dict(depth=2),
    "unet": dict(multipliers=(1,), attention=()),
}
REMATS = [("vit", "dots")]  # those that are quick
each = pytest.mark.parametrize("name", DENOISERS)


def having(option):
    """The denoisers that have an option."""
    return [name for name, fields in FIELDS.items() if option in fields]


def known(name, options):
    """Those of the options that the denoiser has."""
    return {option: value for option, value in options.items() if option in FIELDS[name]}


def out_shape(model, batch, shape):
    """A learned variance has channels of its own."""
    return batch, *shape[:2], shape[2] * (2 if getattr(model, "learned_sigma", False) else 1)


def test_all_are_found():
    """What a config may name; and the tables here have no name that is gone."""
    assert list(DENOISERS) == config.available(config.COMPONENTS["model"])
    assert {fields[0] for fields in FIELDS.values()} == {"conditions"}
    assert {*TINY, *ZERO, *OWN_SHAPES, *SCANNED, *ROLLED, *UNROLLED} <= set(DENOISERS)
    assert {shape_of(denoiser(name)) for name in TINY} == {SHAPE}


@pytest.mark.parametrize("name", quick({"vit", "dit"}, DENOISERS))
@pytest.mark.parametrize(
    ("told", "options"),
    [
        ("label", dict()),
        pytest.param("all", dict(), marks=pytest.mark.slow),
        pytest.param(
            "none", dict(learned_sigma=True, scan=True, dtype="bfloat16"), marks=pytest.mark.slow
        ),
    ],
)
def test_is_zero_at_the_start(name, told, options):
    """Training starts from the constant 0, whatever the input; but not all of it is zero."""
    options = known(name, options)
    model = denoiser(name, told, **options)
    given = inputs(told, shape_of(model))
    out, params = jax.jit(model.init_with_output)(jax.random.key(0, impl=CONSTANT), *given)
    assert not out.any()
    kernels = {
        path: a for path, a in flatten_dict(params["params"]).items() if "kernel" in path[-1]
    }
    zero = [path[-2] for path, kernel in kernels.items() if not kernel.any()]
    assert set(zero) == ZERO.get(name, set(zero))
    assert len(zero) < len(kernels) / 2


@pytest.mark.parametrize("name", quick(["vit"], [name for name in ZERO if "mod" in ZERO[name]]))
def test_a_modulation_of_zero_closes_both_branches_of_a_block(name):
    """The gates of adaLN-Zero: what the other layers of the blocks hold then does not matter."""
    params, given = tiny_params(name), inputs(shape=shape_of(denoiser(name)))
    found = []
    for sign in (1, -1):
        changed = dict(params)
        for block in [key for key in params if key.startswith("block")]:
            off = jax.tree.map(jnp.zeros_like, params[block]["mod"])
            changed[block] = jax.tree.map(lambda a, s=sign: s * a, params[block]) | {"mod": off}
        found.append(np.asarray(compiled(name)(changed, *given)))
    assert abs(found[0]).max() > 0.1
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("name", "shape", "told", "options"),
    [
        pytest.param(name, *case, marks=[] if i in (2, 3, 4) else pytest.mark.slow)
        for name in DENOISERS
        for i, case in enumerate(SHAPES + OWN_SHAPES.get(name, []))
    ],
)
def test_output_has_the_images_shape(name, shape, told, options):
    """Square or not, in float32 also where the matrix products are in bf16; or twice as deep."""
    model = denoiser(name, told, **known(name, options))
    shape = shape if name in TINY else shape_of(model, shape)
    model.check(shape)
    given = inputs(told, shape)
    out = jax.eval_shape(model.init_with_output, jax.random.key(0), *given)[0]
    assert (out.shape, out.dtype) == (out_shape(model, 3, shape), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "told", "options"),
    [
        (name, told, options)
        for name in having("scan")
        for told, options in [("all", {}), *(("label", o) for o in SCANNED.get(name, []) if o)]
    ],
)
def test_scanned_is_unrolled(name, told, options):
    """Rolling the blocks up is a choice of compilation: same parameters, stacked, same images."""
    params, model = tiny_params(name, told, **options), denoiser(name, told, scan=True, **options)
    shape = shape_of(model)
    wanted = param_shapes(model, shape)
    rolled = stacked(params, wanted)
    assert jax.tree.map(jnp.shape, rolled) == jax.tree.map(jnp.shape, wanted)
    plain = compiled(name, told, **options)(params, *inputs(told, shape))
    found = compiled(name, told, scan=True, **options)(rolled, *inputs(told, shape))
    assert abs(plain).max() > 0.1
    np.testing.assert_allclose(found, plain, atol=1e-5)


@functools.cache
def gradient(name, **options):
    """Of a random projection of the images, with respect to all parameters; with dropout's keys."""
    model = denoiser(name, **options)
    given = inputs(shape=shape_of(model))
    keys = jax.random.split(jax.random.key(0), 3)

    def projection(params):
        out = model.apply({"params": params}, *given, keys)
        return (np.random.default_rng(1).standard_normal(out.shape) * out).sum()

    return jax.jit(jax.grad(projection))(random_params(model, shape_of(model)))


def remats(name):
    """(remat, options): one way on blocks as they are by default, the other with `scan`."""
    rolled, unrolled = ROLLED.get(name, {}) | dict(scan=True), UNROLLED.get(name, {})
    if "scan" not in FIELDS[name]:
        return [("full", unrolled), ("dots", unrolled)]
    return [("full", unrolled), ("dots", rolled)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "remat", "options"),
    [
        pytest.param(name, *case, marks=[] if (name, *case[:1]) in REMATS else pytest.mark.slow)
        for name in having("remat")
        for case in remats(name)
    ],
)
def test_remat_changes_no_gradient(name, remat, options):
    """What is computed again is the same again, its dropout masks too."""
    plain, found = gradient(name, **options), gradient(name, remat=remat, **options)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-4 * max(1, abs(one).max()))
    assert any(leaf.any() for leaf in jax.tree.leaves(plain))


@pytest.mark.parametrize("told", quick({"label"}, ["label", "all"]))
@pytest.mark.parametrize("name", quick({"vit"}, having("dtype")))
def test_bfloat16_is_close_and_keeps_float32_parameters(name, told):
    """bf16 has 8 bits: matrix products are off by 0.4 %, and images by a few of these."""
    options = UNROLLED.get(name, {})
    model, params = denoiser(name, told, dtype="bfloat16"), tiny_params(name, told, **options)
    shapes = param_shapes(model, shape_of(model))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    given = inputs(told, shape_of(model))
    plain = compiled(name, told, **options)(params, *given)
    rounded = compiled(name, told, dtype="bfloat16", **options)(params, *given)
    assert rounded.dtype == jnp.float32
    assert 0 < abs(rounded - plain).max() < 0.05 * abs(plain).max()


@functools.cache
def given_all(name):
    """(inputs by their names, images of inputs) of a denoiser that is told all there is."""
    x, time, cond = inputs("all", shape_of(denoiser(name, "all")))
    params = tiny_params(name, "all")

    def images(x, time, **cond):
        return np.asarray(compiled(name, "all")(params, x, time, cond))

    return dict(x=x, time=time) | cond, images


@pytest.mark.parametrize("name", quick({"vit", "unet"}, DENOISERS))
def test_keys_alone_do_nothing(name):
    """They come in training, also where nothing is dropped: the program is the same."""
    apply = compiled(name, **known(name, dict(dropout=0.0)))
    given, params = inputs(shape=shape_of(denoiser(name))), tiny_params(name)
    with_keys, without = (
        apply.lower(params, *given, keys).as_text()
        for keys in (jax.random.split(jax.random.key(0), 3), None)
    )
    assert with_keys == without


@pytest.mark.parametrize("name", quick(["vit"], DENOISERS))
def test_every_class_and_none_of_them_differ(name):
    """-1 is a class of its own: guidance needs the network that knows nothing."""
    given, images = given_all(name)
    given = {key: jnp.broadcast_to(value[:1], value.shape) for key, value in given.items()}
    labels = jnp.arange(CLASSES + 1).reshape(-1, 3) - 1
    out = np.concatenate([images(**given | {"label": three}) for three in labels])
    apart = abs(out[:, None] - out[None]).max((2, 3, 4))
    assert (apart[~np.eye(CLASSES + 1, dtype=bool)] > 1e-3).all()


@each
@pytest.mark.parametrize("changed", ["x", "time", *ALL])
def test_every_input_matters_to_its_own_image_only(name, changed):
    """Every pixel of an image sees one number of what it is told, and whether it is told at all.

    No pixel of another image does.
    """
    given, images = given_all(name)
    plain, value = images(**given), given[changed]
    first = (0,) * value.ndim
    number = value[first]
    others = [value.at[first].set((number + 1) % 2 if value.dtype.kind == "i" else number + 1)]
    if changed in ALL:
        others.append(value.at[0].set(null_cond({changed: value})[changed][0]))
    for other in others:
        moved = abs(images(**given | {changed: other}) - plain)
        assert moved[1:].max() == 0
        assert (moved[0].max(-1) > 1e-4 * abs(plain).max()).all()


@pytest.mark.parametrize("name", quick({"dit"}, DENOISERS))
def test_images_do_not_depend_on_the_batch(name):
    """A part of it gives the same images: so they do not depend on the devices."""
    given, images = given_all(name)
    one = images(**{key: value[:1] for key, value in given.items()})
    whole = images(**given)
    np.testing.assert_allclose(one, whole[:1], atol=1e-5 * abs(whole).max())


@pytest.mark.parametrize(
    "name", quick(["vit"], [n for n in DENOISERS if hasattr(DENOISERS[n], "block_counts")])
)
def test_blocks_are_counted_by_kind(name):
    """So that a plan may compile few of them: every further one of a kind is as large."""
    model, given = denoiser(name, "none"), inputs("none")

    def size(model):
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *given))
        return sum(np.prod(a.shape) for a in jax.tree.leaves(shapes))

    counts = model.block_counts()
    assert size(model.with_block_counts(counts)) == size(model)
    for kind, count in counts.items():
        sizes = [size(model.with_block_counts({**counts, kind: count + more})) for more in range(3)]
        assert sizes[1] - sizes[0] == sizes[2] - sizes[1] > 0
