"""The ViT denoiser by what it must be, whatever its layers do inside: see `parity` for JiT itself.

The published initialisation makes the network the constant 0, so most tests draw all parameters at
random.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitdiff_jax.models import layers
from vitdiff_jax.models.conditions import blank
from vitdiff_jax.models.vit import Model

TINY = dict(
    patch=2, width=16, depth=2, heads=2, bottleneck=8, class_tokens=3, class_tokens_from=1
)  # fmt: skip
DROPPED = dict(depth=4, class_tokens_from=0, dropout=0.5)  # blocks 1 and 2 have dropout
SHAPE = (4, 6, 3)
CLASSES = 5
LABEL = {"label": (CLASSES,)}


def inputs(shape=SHAPE, batch=3, seed=0):
    """Random images and times, and the labels 0, 1, ..., the last one -1: no class."""
    random = np.random.default_rng(seed)
    x = jnp.asarray(random.standard_normal((batch, *shape)), jnp.float32)
    time = jnp.asarray(random.uniform(0, 1, batch), jnp.float32)
    return x, time, {"label": jnp.array([*range(batch - 1), -1])}


def param_shapes(model, shape=SHAPE):
    images, cond = jnp.zeros((1, *shape)), blank(model.conditions, 1, *shape[:2])
    return jax.eval_shape(model.init, jax.random.key(0), images, jnp.zeros(1), cond)["params"]


def random_params(model, shape=SHAPE, seed=0):
    """All parameters normal with the standard deviation 0.3; those of norms around 1."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        center = 1.0 if "norm" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(center + 0.3 * random.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, param_shapes(model, shape))


def stacked(params, wanted):
    """Unrolled parameters as `scan` wants them: the tree `wanted`, whose block trees are stacks."""
    found = {}
    for name in wanted:
        run = re.fullmatch(r"blocks_(\d+)_to_(\d+)", name)
        if run:
            numbers = range(int(run[1]), int(run[2]) + 1)
            blocks = [params[f"block_{i}"] for i in numbers]
            found[name] = jax.tree.map(lambda *a: jnp.stack(a), *blocks)
        else:
            found[name] = params[name]
    return found


@functools.cache
def compiled(**options):
    """(params, x, time, cond, keys) -> images, of the tiny model with these options."""
    model = Model(**dict(conditions=LABEL) | TINY | options)
    return jax.jit(lambda params, *args: model.apply({"params": params}, *args))


@functools.cache
def tiny_params(**options):
    return random_params(Model(**dict(conditions=LABEL) | TINY | options))


@pytest.mark.parametrize(
    ("sizes", "options"),
    [(LABEL, dict(depth=1, class_tokens_from=0)), ({}, dict(scan=True, dtype="bfloat16"))],
)
def test_is_zero_at_the_start(sizes, options):
    """adaLN-zero and a zero head: training starts from the constant 0, whatever the input."""
    model = Model(conditions=sizes, **TINY | options)
    out, variables = jax.jit(model.init_with_output)(jax.random.key(0), *inputs())
    assert not out.any()
    kernels = [leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim > 1]
    assert sum(leaf.any() for leaf in kernels) > len(kernels) / 2  # not all of it is zero


@pytest.mark.parametrize(
    ("shape", "sizes", "options"),
    [
        ((4, 4, 3), LABEL, dict()),
        ((8, 4, 1), LABEL, dict(patch=4, class_tokens_from=0)),
        ((2, 6, 4), LABEL, dict(class_tokens=0, scan=True)),
        ((6, 3, 3), {}, dict(patch=3, remat="full", dtype="bfloat16")),
        ((4, 4, 3), {}, dict(size="S", width=None, heads=None)),
    ],
)
def test_output_has_the_images_shape(shape, sizes, options):
    """Square or not, in float32 also where the matrix products are in bf16."""
    model = Model(conditions=sizes, **TINY | options)
    model.check(shape)
    x, time, cond = inputs(shape)
    cond = cond if sizes else {}
    out = jax.eval_shape(model.init_with_output, jax.random.key(0), x, time, cond)[0]
    assert (out.shape, out.dtype) == (x.shape, jnp.float32)


@pytest.mark.parametrize(("size", "published"), [("B", 131e6), ("L", 459e6), ("H", 953e6)])
def test_sizes_are_the_published_ones(size, published):
    """Parameters of JiT-B/16, L/16 and H/16 (arXiv:2511.13720, table 4), to 1 %."""
    model = Model(conditions={"label": (1000,)}, size=size, scan=True)
    count = sum(leaf.size for leaf in jax.tree.leaves(param_shapes(model, (256, 256, 3))))
    assert abs(count / published - 1) < 0.01


@pytest.mark.parametrize("start", [0, 1, 2])
def test_scanned_is_unrolled(start):
    """Rolling the blocks up is a choice of compilation: same parameters, stacked, same images."""
    params = tiny_params(class_tokens_from=start)
    wanted = param_shapes(
        Model(conditions=LABEL, **TINY | dict(class_tokens_from=start, scan=True))
    )
    rolled = stacked(params, wanted)
    assert jax.tree.map(jnp.shape, rolled) == jax.tree.map(jnp.shape, wanted)
    plain = compiled(class_tokens_from=start)(params, *inputs())
    found = compiled(class_tokens_from=start, scan=True)(rolled, *inputs())
    assert abs(plain).max() > 0.1
    np.testing.assert_allclose(found, plain, atol=1e-5)


@functools.cache
def gradient(**options):
    """Of a random projection of the images, with respect to all parameters."""
    model = Model(conditions=LABEL, **TINY | DROPPED | options)
    params = random_params(model)
    weights = np.random.default_rng(1).standard_normal((3, *SHAPE))
    keys = jax.random.split(jax.random.key(0), 3)

    def projection(params):
        return (weights * model.apply({"params": params}, *inputs(), keys)).sum()

    return jax.jit(jax.grad(projection))(params)


@pytest.mark.parametrize(
    ("remat", "options"),
    [
        ("full", dict(scan=True)),
        ("dots", dict(scan=True)),
        ("full", dict(depth=1, dropout=0.0)),
    ],
)
def test_remat_changes_no_gradient(remat, options):
    """What is computed again is the same again, its dropout masks too."""
    plain, found = gradient(**options), gradient(remat=remat, **options)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-4 * max(1, abs(one).max()))
    assert any(leaf.any() for leaf in jax.tree.leaves(plain))


def test_bfloat16_is_close_and_keeps_float32_parameters():
    """bf16 has 8 bits: matrix products are off by 0.4 %, and images by a few of these."""
    shapes = param_shapes(Model(conditions=LABEL, **TINY | dict(dtype="bfloat16")))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    plain = compiled()(tiny_params(), *inputs())
    rounded = compiled(dtype="bfloat16")(tiny_params(), *inputs())
    assert rounded.dtype == jnp.float32
    assert 0 < abs(rounded - plain).max() < 0.05 * abs(plain).max()


def without_blocks(params, numbers):
    """Blocks that are all zero have zero gates: nothing in them matters."""
    names = {f"block_{i}" for i in numbers}
    return {k: jax.tree.map(jnp.zeros_like, v) if k in names else v for k, v in params.items()}


@pytest.mark.parametrize("scan", [False, True])
def test_dropout_is_in_the_middle_half_of_the_blocks(scan):
    """Blocks 1 and 2 of 4, as in JiT: it changes the images through these and no others."""
    apply, params = compiled(scan=scan, **DROPPED), tiny_params(**DROPPED)
    wanted = param_shapes(Model(conditions=LABEL, **TINY | DROPPED | dict(scan=scan)))
    keys = jax.random.split(jax.random.key(0), 3)
    for off, matters in (((1, 2), False), ((0, 2, 3), True), ((0, 1, 3), True)):
        some = stacked(without_blocks(params, off), wanted)
        dropped, plain = apply(some, *inputs(), keys), apply(some, *inputs(), None)
        assert (np.asarray(dropped) != np.asarray(plain)).any() == matters


def test_dropout_is_off_without_keys_and_without_a_rate():
    """None is sampling; and keys always come in training, also where the rate is 0."""
    keys, params = jax.random.split(jax.random.key(0), 3), tiny_params(**DROPPED)
    plain = np.asarray(compiled(**DROPPED)(params, *inputs(), None))
    rateless = compiled(**DROPPED | dict(dropout=0.0))(params, *inputs(), keys)
    np.testing.assert_allclose(rateless, plain, atol=1e-6)


def test_dropout_belongs_to_the_example():
    """One example's mask is its key's, in any batch: results do not depend on the devices."""
    apply, params = compiled(**DROPPED), tiny_params(**DROPPED)
    (x, time, cond), keys = inputs(), jax.random.split(jax.random.key(0), 3)
    whole = np.asarray(apply(params, x, time, cond, keys))
    part = apply(params, x[1:2], time[1:2], {"label": cond["label"][1:2]}, keys[1:2])
    np.testing.assert_allclose(part, whole[1:2], atol=1e-5)
    other = apply(params, x, time, cond, jax.random.split(jax.random.key(1), 3))
    assert (abs(np.asarray(other) - whole).max((1, 2, 3)) > 1e-3).all()


def test_dropout_keeps_the_expectation():
    """Kept entries grow by 1 / (1 - rate); the share that is dropped is the rate (5 sigma)."""
    keys = jax.random.split(jax.random.key(0), 4)
    dropped = np.asarray(layers.dropout(jnp.ones((4, 50, 100)), keys, jnp.float32(0.2)))
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / np.float32(0.8))}
    assert abs((dropped == 0).mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / dropped.size)
    assert (dropped[0] != dropped[1]).any()


def test_every_class_and_none_of_them_differ():
    """-1 is a class of its own: guidance needs the network that knows nothing."""
    x, time, _ = inputs(batch=CLASSES + 1)
    x, time = (jnp.broadcast_to(a[:1], a.shape) for a in (x, time))
    label = jnp.arange(CLASSES + 1) - 1
    out = np.asarray(compiled()(tiny_params(), x, time, {"label": label}))
    apart = abs(out[:, None] - out[None]).max((2, 3, 4))
    assert (apart[~np.eye(CLASSES + 1, dtype=bool)] > 1e-3).all()


@pytest.mark.parametrize("changed", ["x", "time"])
def test_every_input_matters_to_its_own_image_only(changed):
    """Each pixel is seen by all of its image (one patch reaches another), never by another's."""
    x, time, cond = inputs()
    plain = np.asarray(compiled()(tiny_params(), x, time, cond))
    if changed == "x":
        x = x.at[1, 0, 0, 0].add(1.0)
    else:
        time = time.at[1].add(0.5)
    moved = abs(np.asarray(compiled()(tiny_params(), x, time, cond)) - plain)
    assert moved[[0, 2]].max() == 0
    assert (moved[1].reshape(2, 2, 3, 2, 3).max((1, 3, 4)) > 1e-4).all()  # every patch


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        (dict(patch=4), (6, 8, 3), "patch: 4 does not divide the 6x8 images"),
        (dict(patch=4), (8, 6, 3), "patch: 4 does not divide the 8x6 images"),
        (dict(patch=0), SHAPE, "patch: 0"),
        (dict(heads=3), SHAPE, "heads: 3 does not divide the width 16"),
        (dict(heads=8), SHAPE, "heads: .* = 2 must divide by 4"),
        (dict(heads=0), SHAPE, "heads: 0"),
        (dict(width=0), SHAPE, "width: 0"),
        (dict(depth=0), SHAPE, "depth: 0"),
        (dict(bottleneck=-1), SHAPE, "bottleneck: -1"),
        (dict(size="XL"), SHAPE, "size: 'XL' is none of S, B, L, H"),
        (dict(remat="some"), SHAPE, "remat: 'some' is none of none, full, dots"),
        (dict(dtype="float16"), SHAPE, "dtype: 'float16' is none of float32, bfloat16"),
        (dict(dropout=1.0), SHAPE, "dropout: 1.0"),
        (dict(dropout=-0.1), SHAPE, "dropout: -0.1"),
    ],
)
def test_check_names_the_option(options, shape, message):
    """One line that starts with the key, before anything is compiled."""
    with pytest.raises(ValueError, match=f"^{message}"):
        Model(conditions=LABEL, **TINY | options).check(shape)


@pytest.mark.parametrize(
    "options",
    [
        dict(class_tokens=-1),
        dict(class_tokens_from=-1),
        dict(mlp_ratio=0.0),
        dict(mlp_ratio=-4.0),
        dict(text_width=0),
        dict(text_width=5),
        dict(text_width=130),
        dict(conditions={"text": (18,)}),
    ],
)
def test_check_refuses_what_cannot_be_built(options):
    """Whatever `check` lets through must initialise: else the error comes from deep inside JAX."""
    with pytest.raises(ValueError, match=f"^{next(iter(options))}: "):
        Model(**dict(conditions=LABEL) | TINY | options).check(SHAPE)


def test_patches_are_squares_row_by_row():
    """Patch (i, j) is the square at rows 2i and columns 3j; `unpatchify` puts it back."""
    x = np.random.default_rng(0).standard_normal((2, 6, 9, 4)).astype(np.float32)
    patches = np.asarray(layers.patchify(jnp.asarray(x), 3))
    assert patches.shape == (2, 6, 36)
    for n in range(6):
        row, col = divmod(n, 3)
        square = x[:, 3 * row : 3 * row + 3, 3 * col : 3 * col + 3]
        np.testing.assert_array_equal(patches[:, n], square.reshape(2, -1))
    np.testing.assert_array_equal(layers.unpatchify(jnp.asarray(patches), 3, 6, 9), x)


def test_rotary_angles_are_axial():
    """Half the frequencies times the row, half times the column; class tokens are not turned."""
    rows, cols = 3, 4
    found = layers.rotary_angles(rows, cols, 8, prefix=2)
    frequencies = 10000.0 ** (-np.arange(2) / 2)
    for n in range(rows * cols):
        row, col = divmod(n, cols)
        wanted = np.concatenate([frequencies * row, frequencies * col])
        np.testing.assert_allclose(found[:, 2 + n], wanted, rtol=1e-6)
    assert not found[:, :2].any()


def test_attention_sees_relative_positions_alone():
    """Moving the whole image by (2, 1) turns queries and keys alike: their products stay.

    Moving tokens apart does not: with rows and columns exchanged another image comes out.
    """
    attention = layers.Attention(2, jnp.dtype("float32"))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 12, 16)), jnp.float32)
    angles = layers.rotary_angles(3, 4, 8)
    shapes = jax.eval_shape(attention.init, jax.random.key(0), x, angles)
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda a: jnp.asarray(random.standard_normal(a.shape), a.dtype), shapes)
    apply = jax.jit(attention.apply)
    plain = np.asarray(apply(params, x, angles))
    moved = apply(params, x, angles + angles[:, [9]])
    np.testing.assert_allclose(moved, plain, atol=1e-4 * abs(plain).max())
    exchanged = apply(params, x, jnp.roll(angles, 2, axis=0))
    assert abs(exchanged - plain).max() > 0.01 * abs(plain).max()


def plain_attention(q, k, v):
    """Softmax attention as in arXiv:1706.03762, eq. 1, on [B, H, K, N]."""
    scores = jnp.einsum("bhkn,bhkm->bhnm", q, k) / np.sqrt(q.shape[2])
    return jnp.einsum("bhnm,bhkm->bhkn", jax.nn.softmax(scores, -1), v)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_attention_is_a_softmax(scale):
    """In float32 against float64; scores of a hundred must not overflow the exponential."""
    q, k, v, w = np.random.default_rng(0).standard_normal((4, 2, 3, 8, 7))
    q = scale * q

    def projection(attend):
        return lambda q, k, v: (w.astype(q.dtype) * attend(q, k, v)).sum()

    single = [a.astype(np.float32) for a in (q, k, v)]
    found = layers.attend(*single)
    slopes = jax.grad(projection(layers.attend), (0, 1, 2))(*single)
    with jax.enable_x64(True):
        wanted = plain_attention(q, k, v)
        wanted_slopes = jax.grad(projection(plain_attention), (0, 1, 2))(q, k, v)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * scale)
    for one, other in zip(slopes, wanted_slopes, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * scale)


def test_attention_looks_where_the_mask_says():
    """As if the other tokens were not there; with none to look at it is still a finite number."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 4, 3, 8, 7)).astype(np.float32)
    mask = np.arange(7) % np.array([[1], [2], [5], [8]]) == 0
    mask[3] = False
    found = np.asarray(layers.attend(q, k, v, mask))
    for b in range(3):
        seen = [a[b : b + 1, ..., mask[b]] for a in (k, v)]
        np.testing.assert_allclose(found[[b]], plain_attention(q[[b]], *seen), atol=1e-5)
    assert np.isfinite(found[3]).all()


def test_sincos_positions_are_maes():
    """Half the channels for the column and half for the row, each 1 / 10000^(i / (width / 4))."""
    found = np.asarray(layers.sincos_positions(3, 5, 16))
    for row in range(3):
        for col in range(5):
            waves = [np.outer([col, row], 10000.0 ** (-np.arange(4) / 4))]
            wanted = np.concatenate([np.sin(waves), np.cos(waves)], -1).ravel()
            np.testing.assert_allclose(found[5 * row + col], wanted, atol=1e-6)


def test_time_features_tell_times_apart():
    """256 waves of the time, cosines first: 10000^(-i / 128) for i < 128 (arXiv:2006.11239)."""
    model = layers.TimeEmbedding(256, jnp.dtype("float32"))
    time = jnp.array([0.0, 0.37, 1.0])
    params = model.init(jax.random.key(0), time)
    eye = {"kernel": jnp.eye(256), "bias": jnp.zeros(256)}
    params = {"params": {"in": eye, "out": eye} | dict.fromkeys(params["params"], eye)}
    angle = np.outer(time, 10000.0 ** (-np.arange(128) / 128))
    waves = np.concatenate([np.cos(angle), np.sin(angle)], -1)
    wanted = waves / (1 + np.exp(-waves))  # silu between two identities
    np.testing.assert_allclose(model.apply(params, time), wanted, atol=1e-5)
