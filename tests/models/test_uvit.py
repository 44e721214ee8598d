"""U-ViT by what it must be, whatever its layers do inside: see `parity` for U-ViT itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.models.test_vit import inputs, param_shapes, random_params, stacked
from vitdiff_jax.models import uvit
from vitdiff_jax.models.conditions import blank
from vitdiff_jax.models.uvit import Model

TINY = dict(patch=2, width=16, depth=4, heads=2)  # blocks 0, 1, the middle 2, and 3, 4
SHAPE = (4, 6, 3)
CLASSES = 5
LABEL = {"label": (CLASSES,)}
ALL = LABEL | {"attributes": (2,), "text": (16,), "embedding": (2, 6), "hint": (1,)}


SIZES = {"label": LABEL, "all": ALL, "none": {}}


@functools.cache
def compiled(told="label", **options):
    """(params, x, time, cond, keys) -> images, of the tiny model with these options."""
    model = Model(conditions=SIZES[told], **TINY | options)
    return jax.jit(lambda params, *args: model.apply({"params": params}, *args))


@functools.cache
def tiny_params(told="label", **options):
    return random_params(Model(conditions=SIZES[told], **TINY | options))


def with_leaf(params, path, change):
    """The parameters with the one at `path` changed by a function."""
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({**flat, path: change(jnp.asarray(flat[path]))}, sep="/")


def all_conditions(batch=3, seed=0):
    """Every kind of condition: labels, attributes, texts of 5 bytes, two vectors, one channel."""
    random = np.random.default_rng(seed)
    text = np.full((batch, 16), -1)
    text[:, :5] = random.integers(0, 256, (batch, 5))
    return {
        "label": jnp.asarray(random.integers(0, CLASSES, batch)),
        "attributes": jnp.asarray(random.integers(0, 2, (batch, 2))),
        "text": jnp.asarray(text),
        "embedding": jnp.asarray(random.standard_normal((batch, 2, 6)), jnp.float32),
        "hint": jnp.asarray(random.standard_normal((batch, *SHAPE[:2], 1)), jnp.float32),
    }


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        (LABEL, dict()),
        ({}, dict(scan=True, dtype="bfloat16", final_conv=False)),
        (ALL, dict(learned_sigma=True)),
    ],
)
def test_is_zero_at_the_start(sizes, options):
    """Its last layer is zero: training starts from the constant 0, whatever the input."""
    model = Model(conditions=sizes, **TINY | options)
    x, time, label = inputs()
    cond = all_conditions() if sizes is ALL else label if sizes else {}
    out, variables = jax.jit(model.init_with_output)(jax.random.key(0), x, time, cond)
    assert not out.any()
    zero = [path for path, leaf in leaves(variables["params"]).items() if not leaf.any()]
    last = "head" if options.get("final_conv") is False else "final_conv"
    assert [path for path in zero if "kernel" in path] == [f"{last}/kernel"]


def leaves(params):
    return flatten_dict(params, sep="/")


@pytest.mark.parametrize("final_conv", [True, False])
def test_everything_learns_from_the_second_step_on(final_conv):
    """The first step reaches the last layer alone, and opens the way to all others."""
    model = Model(conditions=LABEL, **TINY | dict(depth=2, final_conv=final_conv))
    x, time, cond = inputs()
    params = model.init(jax.random.key(0), x, time, cond)["params"]

    def loss(params):
        return ((model.apply({"params": params}, x, time, cond) - x) ** 2).mean()

    slope = jax.jit(jax.grad(loss))
    first = slope(params)
    last = "final_conv" if final_conv else "head"
    assert {path.partition("/")[0] for path, leaf in leaves(first).items() if leaf.any()} == {last}
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, first)
    assert all(leaf.any() for leaf in leaves(slope(params)).values())


@pytest.mark.parametrize(
    ("shape", "sizes", "options"),
    [
        ((4, 4, 3), LABEL, dict()),
        ((8, 4, 1), LABEL, dict(patch=4, learned_sigma=True)),
        ((2, 6, 4), LABEL, dict(final_conv=False, scan=True)),
        ((6, 3, 3), {}, dict(patch=3, remat="full", dtype="bfloat16", learned_sigma=True)),
        ((4, 4, 3), {}, dict(size="S-deep", width=None, heads=None, depth=None)),
        ((4, 4, 3), {}, dict(depth=0, scan=True)),
    ],
)
def test_output_has_the_images_shape(shape, sizes, options):
    """Square or not, in float32 also where the matrix products are in bf16; or twice as deep."""
    model = Model(conditions=sizes, **TINY | options)
    model.check(shape)
    x, time, cond = inputs(shape)
    cond = cond if sizes else {}
    out = jax.eval_shape(model.init_with_output, jax.random.key(0), x, time, cond)[0]
    channels = shape[2] * (2 if options.get("learned_sigma") else 1)
    assert (out.shape, out.dtype) == ((3, *shape[:2], channels), jnp.float32)


@pytest.mark.parametrize(
    ("size", "classes", "published"),
    [
        ("S", 0, 44e6),
        ("S-deep", 0, 58e6),
        ("M", 1000, 131e6),
        ("L", 1000, 287e6),
        ("H", 1000, 501e6),
    ],
)
def test_sizes_are_the_published_ones(size, classes, published):
    """Parameters of arXiv:2209.12152, table 1, to 1 %."""
    sizes = {"label": (classes,)} if classes else {}
    model = Model(conditions=sizes, size=size, scan=True)
    count = sum(leaf.size for leaf in jax.tree.leaves(param_shapes(model, (64, 64, 3))))
    assert abs(count / published - 1) < 0.01


@pytest.mark.parametrize("options", [dict(), dict(depth=2)])
def test_scanned_is_unrolled(options):
    """Rolling the blocks up is a choice of compilation: same parameters, stacked, same images."""
    params = tiny_params(**options)
    wanted = param_shapes(Model(conditions=LABEL, **TINY | options | dict(scan=True)))
    rolled = stacked(params, wanted)
    assert jax.tree.map(jnp.shape, rolled) == jax.tree.map(jnp.shape, wanted)
    plain = compiled(**options)(params, *inputs())
    found = compiled(scan=True, **options)(rolled, *inputs())
    assert abs(plain).max() > 0.1
    np.testing.assert_allclose(found, plain, atol=1e-5 * abs(plain).max())


@functools.cache
def gradient(**options):
    """Of a random projection of the images, with respect to all parameters."""
    model = Model(conditions=LABEL, **TINY | options)
    params = random_params(model)
    weights = np.random.default_rng(1).standard_normal((3, *SHAPE))

    def projection(params):
        return (weights * model.apply({"params": params}, *inputs())).sum()

    return jax.jit(jax.grad(projection))(params)


@pytest.mark.parametrize(("remat", "scan"), [("full", True), ("dots", True), ("full", False)])
def test_remat_changes_no_gradient(remat, scan):
    """What is computed again is the same again."""
    plain, found = gradient(scan=scan), gradient(remat=remat, scan=scan)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-4 * max(1, abs(one).max()))
    assert any(leaf.any() for leaf in jax.tree.leaves(plain))


def test_bfloat16_is_close_and_keeps_float32_parameters():
    """bf16 has 8 bits: matrix products are off by 0.4 %, and images by a few of these."""
    shapes = param_shapes(Model(conditions=LABEL, **TINY | dict(dtype="bfloat16")))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    plain = compiled()(tiny_params(), *inputs())
    rounded = compiled(dtype="bfloat16")(tiny_params(), *inputs())
    assert 0 < abs(rounded - plain).max() < 0.05 * abs(plain).max()


def test_keys_do_nothing():
    """They come in training; U-ViT has no dropout."""
    keys = jax.random.split(jax.random.key(0), 3)
    plain = compiled()(tiny_params(), *inputs(), None)
    np.testing.assert_array_equal(compiled()(tiny_params(), *inputs(), keys), plain)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(("last", "seen"), [(4, {0}), (3, {0, 1, 4})])
def test_long_skips_join_mirror_images(scan, last, seen):
    """Where block `last` takes in its skip alone, nothing matters that came after the skip began.

    Block 4 mirrors block 0, and block 3 block 1; the last block itself always matters.
    """
    params = with_leaf(tiny_params(), f"block_{last}/skip/kernel", lambda k: k.at[:16].set(0.0))
    wanted = param_shapes(Model(conditions=LABEL, **TINY | dict(scan=scan)))
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


def test_every_class_and_none_of_them_differ():
    """-1 is a class of its own: guidance needs the network that knows nothing."""
    x, time, _ = inputs(batch=CLASSES + 1)
    x, time = (jnp.broadcast_to(a[:1], a.shape) for a in (x, time))
    label = jnp.arange(CLASSES + 1) - 1
    out = np.asarray(compiled()(tiny_params(), x, time, {"label": label}))
    apart = abs(out[:, None] - out[None]).max((2, 3, 4))
    assert (apart[~np.eye(CLASSES + 1, dtype=bool)] > 1e-3).all()


@pytest.mark.parametrize(
    "changed", ["x", "time", "label", "attributes", "text", "embedding", "hint"]
)
def test_every_input_matters_to_its_own_image_only(changed):
    """Each pixel is seen by all of its image (one patch reaches another), never by another's."""
    apply, params = compiled("all"), tiny_params("all")
    x, time, _ = inputs()
    given = {"x": x, "time": time} | all_conditions()

    def images(given):
        cond = {name: value for name, value in given.items() if name in ALL}
        return np.asarray(apply(params, given["x"], given["time"], cond))

    value = given[changed]
    first = (1, *[0] * (value.ndim - 1))
    other = 1 - value[first] if changed == "attributes" else (value[first] + 1) % CLASSES
    moved = abs(images({**given, changed: value.at[first].set(other)}) - images(given))
    assert moved[[0, 2]].max() == 0
    assert (moved[1].reshape(2, 2, 3, 2, 3).max((1, 3, 4)) > 1e-4).all()  # every patch


def test_every_place_has_a_position_of_its_own():
    """Those of tokens that are there: label, time, 2 of the 4 of a text of 5 bytes, vectors."""
    apply, params = compiled("all"), tiny_params("all")
    x, time, _ = inputs()
    plain = apply(params, x, time, all_conditions())

    def moves(path, place):
        moved = with_leaf(params, path, lambda a: a.at[place].add(1.0 * jnp.arange(16)))
        return bool((abs(apply(moved, x, time, all_conditions()) - plain) > 1e-4).any())

    assert params["positions"].shape == (2, 3, 16)
    assert all(moves("positions", (row, col)) for row in range(2) for col in range(3))
    found = [moves("token_positions", (place,)) for place in range(8)]
    assert found == [True, True, True, True, False, False, True, True]


def test_time_is_waves_cosines_first():
    """10000^(-i / 8) t for i < 8, also far out: published networks see t up to 999."""
    time = np.array([0.0, 0.37, 999.0])
    angle = np.outer(time, 10000.0 ** (-np.arange(8) / 8))
    wanted = np.concatenate([np.cos(angle), np.sin(angle)], -1)
    found = uvit.waves(jnp.asarray(time, jnp.float32), 16)
    np.testing.assert_allclose(found, wanted, atol=3e-4)  # 999 in float32 is 6e-5 wide


def test_final_convolution_mixes_neighbouring_patches():
    """With blocks that are the identity a pixel reaches one pixel beyond its patch, no farther."""
    params = leaves(tiny_params("none"))
    params |= {path: 0 * leaf for path, leaf in params.items() if "/out" in path}
    params |= {path: jnp.eye(32, 16) for path in params if path.endswith("skip/kernel")}
    x, time, _ = inputs((8, 8, 3), batch=1)
    params["positions"] = jnp.zeros((4, 4, 16))
    params = unflatten_dict(params, sep="/")
    moved = x.at[0, 2, 2, 0].add(1.0)  # of the patch of rows and columns 2 and 3
    apply = compiled("none")
    apart = abs(apply(params, moved, time, {}) - apply(params, x, time, {}))[0].max(-1)
    reached = np.zeros((8, 8), bool)
    reached[1:5, 1:5] = True
    np.testing.assert_array_equal(np.asarray(apart) > 0, reached)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        (dict(patch=4), (6, 8, 3), "patch: 4 does not divide the 6x8 images"),
        (dict(patch=4), (8, 6, 3), "patch: 4 does not divide the 8x6 images"),
        (dict(patch=0), SHAPE, "patch: 0"),
        (dict(heads=3), SHAPE, "heads: 3 does not divide the width 16"),
        (dict(heads=0), SHAPE, "heads: 0"),
        (dict(width=0), SHAPE, "width: 0"),
        (dict(width=5, heads=1), SHAPE, "width: 5 is odd"),
        (dict(depth=-2), SHAPE, "depth: -2"),
        (dict(depth=3), SHAPE, "depth: 3 is odd"),
        (dict(size="XL"), SHAPE, "size: 'XL' is none of S, S-deep, M, L, H"),
        (dict(remat="some"), SHAPE, "remat: 'some' is none of none, full, dots"),
        (dict(dtype="float16"), SHAPE, "dtype: 'float16' is none of float32, bfloat16"),
        (dict(mlp_ratio=0.0), SHAPE, "mlp_ratio: 0.0"),
        (dict(text_width=0), SHAPE, "text_width: 0"),
        (dict(text_width=5), SHAPE, "text_width: 5"),
        (dict(conditions={"text": (18,)}), SHAPE, "conditions: texts of 18 bytes"),
    ],
)
def test_check_names_the_option(options, shape, message):
    """One line that starts with the key, before anything is compiled."""
    with pytest.raises(ValueError, match=f"^{message}"):
        Model(**dict(conditions=LABEL) | TINY | options).check(shape)


def test_blank_conditions_fit():
    """What `init` is given elsewhere has the shapes that the network wants."""
    model = Model(conditions=ALL, **TINY)
    model.check(SHAPE)
    shapes = param_shapes(model, SHAPE)
    cond = blank(ALL, 2, *SHAPE[:2])
    out = jax.eval_shape(
        lambda p: model.apply({"params": p}, jnp.zeros((2, *SHAPE)), jnp.zeros(2), cond), shapes
    )
    assert out.shape == (2, *SHAPE)
