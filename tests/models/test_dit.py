"""DiT by what it must be, whatever its layers do inside: see `parity` for DiT itself."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.models.test_vit import inputs, param_shapes, random_params, stacked
from vitdiff_jax.models import layers
from vitdiff_jax.models.conditions import blank
from vitdiff_jax.models.dit import Model

TINY = dict(patch=2, width=16, depth=2, heads=2)
SHAPE = (4, 6, 3)
LABEL = {"label": (5,)}
LABEL_KEY = tuple(LABEL.items())
ALL = LABEL | {"attributes": (2,), "text": (16,), "embedding": (2, 6), "hint": (1,)}
TEXT = dict(text_width=8, text_depth=1)


@functools.cache
def compiled(sizes=LABEL_KEY, **options):
    """(params, x, time, cond) -> images, of the tiny model with these options."""
    model = Model(conditions=dict(sizes), **TINY | options)
    return jax.jit(lambda params, *args: model.apply({"params": params}, *args))


@functools.cache
def tiny_params(sizes=LABEL_KEY, **options):
    return random_params(Model(conditions=dict(sizes), **TINY | options))


def all_conditions(batch=3, seed=0):
    """Every kind of condition: labels, attributes, texts of 5 bytes, two vectors, one channel."""
    random = np.random.default_rng(seed)
    cond = {name: np.array(value) for name, value in blank(ALL, batch, *SHAPE[:2]).items()}
    cond["label"] = random.integers(0, 5, batch)
    cond["attributes"] = random.integers(0, 2, (batch, 2))
    cond["text"][:, :5] = random.integers(0, 256, (batch, 5))
    for name in ("embedding", "hint"):
        cond[name] = random.standard_normal(cond[name].shape).astype("f4")
    return {name: jnp.asarray(value) for name, value in cond.items()}


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        (LABEL, dict()),
        ({}, dict(scan=True, dtype="bfloat16")),
        (ALL, dict(learned_sigma=True, **TEXT)),
    ],
)
def test_is_zero_at_the_start(sizes, options):
    """adaLN-zero and a zero head: training starts from the constant 0, whatever the input."""
    model = Model(conditions=sizes, **TINY | options)
    x, time, label = inputs()
    cond = all_conditions() if sizes is ALL else label if sizes else {}
    out, variables = jax.jit(model.init_with_output)(jax.random.key(0), x, time, cond)
    assert not out.any()
    kernels = flatten_dict(variables["params"])
    zero = {path[-2] for path, leaf in kernels.items() if path[-1] == "kernel" and not leaf.any()}
    assert zero == {"mod", "head_mod", "head"}


@pytest.mark.parametrize(
    ("shape", "sizes", "options"),
    [
        ((4, 4, 3), LABEL, dict()),
        ((8, 4, 1), LABEL, dict(patch=4, learned_sigma=True)),
        ((2, 6, 4), LABEL, dict(scan=True, learned_sigma=True)),
        ((6, 3, 3), {}, dict(patch=3, remat="full", dtype="bfloat16", learned_sigma=True)),
        ((4, 4, 3), {}, dict(size="S", width=None, heads=None)),
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


@pytest.mark.parametrize(
    ("size", "published"), [("S", 33e6), ("B", 130e6), ("L", 458e6), ("XL", 675e6)]
)
def test_sizes_are_the_published_ones(size, published):
    """Parameters of DiT-S/2 to XL/2 (arXiv:2212.09748, table 4), to 1 %."""
    model = Model(conditions={"label": (1000,)}, size=size, learned_sigma=True, scan=True)
    count = sum(leaf.size for leaf in jax.tree.leaves(param_shapes(model, (32, 32, 4))))
    assert abs(count / published - 1) < 0.01


def test_scanned_is_unrolled():
    """Rolling the blocks up is a choice of compilation: same parameters, stacked, same images."""
    wanted = param_shapes(Model(conditions=LABEL, **TINY | dict(scan=True)))
    rolled = stacked(tiny_params(), wanted)
    assert jax.tree.map(jnp.shape, rolled) == jax.tree.map(jnp.shape, wanted)
    plain = compiled()(tiny_params(), *inputs())
    assert abs(plain).max() > 0.1
    np.testing.assert_allclose(compiled(scan=True)(rolled, *inputs()), plain, atol=1e-5)


@functools.cache
def gradient(**options):
    """Of a random projection of the images, with respect to all parameters."""
    model = Model(conditions=LABEL, **TINY | options)
    weights = np.random.default_rng(1).standard_normal((3, *SHAPE))

    def projection(params):
        return (weights * model.apply({"params": params}, *inputs())).sum()

    return jax.jit(jax.grad(projection))(random_params(model))


@pytest.mark.parametrize(("remat", "scan"), [("full", False), ("dots", True)])
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
    assert rounded.dtype == jnp.float32
    assert 0 < abs(rounded - plain).max() < 0.05 * abs(plain).max()


@pytest.mark.parametrize("changed", ["x", "time", *ALL])
def test_every_input_matters_to_its_own_image_only(changed):
    """Each patch of an image sees what it is told and all of its image, and nothing of another's.

    So it does not depend on the batch, either: a part of it gives the same images.
    """
    key = dict(sizes=tuple(ALL.items()), **TEXT)
    apply, params = compiled(**key), tiny_params(**key)
    (x, time, _), cond = inputs(), all_conditions()
    plain = np.asarray(apply(params, x, time, cond))
    one = apply(params, x[1:2], time[1:2], {name: a[1:2] for name, a in cond.items()})
    np.testing.assert_allclose(one, plain[1:2], atol=1e-5)
    if changed == "x":
        x = x.at[1, 0, 0, 0].add(1.0)
    elif changed == "time":
        time = time.at[1].add(0.5)
    else:
        none = blank(ALL, 3, *SHAPE[:2])[changed]
        cond[changed] = cond[changed].at[1].set(none[1].astype(cond[changed].dtype))
    moved = abs(np.asarray(apply(params, x, time, cond)) - plain)
    assert moved[[0, 2]].max() == 0
    assert (moved[1].reshape(2, 2, 3, 2, 3).max((1, 3, 4)) > 1e-4).all()  # every patch


def test_tokens_of_a_text_are_cut_off():
    """Without blocks (all zero, so are their gates) a patch of the image sees itself alone."""
    key = dict(sizes=tuple(ALL.items()), **TEXT)
    apply, params = compiled(**key), tiny_params(**key)
    params = {k: jax.tree.map(jnp.zeros_like, v) if "block" in k else v for k, v in params.items()}
    (x, time, _), cond = inputs(), all_conditions()
    plain = np.asarray(apply(params, x, time, cond))
    moved = np.asarray(apply(params, x.at[:, 3, 5].add(1.0), time, cond)) != plain
    assert moved[:, 2:, 4:].any((1, 2, 3)).all()
    assert not moved[:, :2].any()
    assert not moved[:, :, :4].any()


def test_bytes_after_the_end_of_a_text_are_not_there():
    """A text of half the room, whose other half is masked, is the same text in a smaller room."""
    sizes = {"text": (16,)}
    key = dict(sizes=tuple(sizes.items()), **TEXT)
    x, time, _ = inputs()
    params, text = tiny_params(**key), np.full((3, 16), -1)
    text[:, :7] = 65 + np.arange(21).reshape(3, 7)
    wide = compiled(**key)(params, x, time, {"text": jnp.asarray(text)})
    encoder = params["conditions"]["text"]
    short = encoder | {"positions": encoder["positions"][:2]}
    params = params | {"conditions": params["conditions"] | {"text": short}}
    narrow = compiled(**key | dict(sizes=(("text", (8,)),)))
    found = narrow(params, x, time, {"text": jnp.asarray(text[:, :8])})
    np.testing.assert_allclose(found, wide, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        (dict(patch=4), (6, 8, 3), "patch: 4 does not divide the 6x8 images"),
        (dict(patch=4), (8, 6, 3), "patch: 4 does not divide the 8x6 images"),
        (dict(patch=0), SHAPE, "patch: 0"),
        (dict(heads=3), SHAPE, "heads: 3 does not divide the width 16"),
        (dict(heads=0), SHAPE, "heads: 0"),
        (dict(width=0), SHAPE, "width: 0"),
        (dict(width=18), SHAPE, "width: 18 must divide by 4"),
        (dict(depth=0), SHAPE, "depth: 0"),
        (dict(mlp_ratio=0.05), SHAPE, "mlp_ratio: 0.05"),
        (dict(size="H"), SHAPE, "size: 'H' is none of S, B, L, XL"),
        (dict(remat="some"), SHAPE, "remat: 'some' is none of none, full, dots"),
        (dict(dtype="float16"), SHAPE, "dtype: 'float16' is none of float32, bfloat16"),
        (dict(text_depth=0), SHAPE, "text_depth: 0"),
        (dict(conditions={"text": (18,)}), SHAPE, "conditions: "),
    ],
)
def test_check_names_the_option(options, shape, message):
    """One line that starts with the key, before anything is compiled."""
    with pytest.raises(ValueError, match=f"^{message}"):
        Model(**dict(conditions=LABEL) | TINY | options).check(shape)


def standardised(x, axes):
    """Mean 0 and variance 1 over these axes, in float64."""
    x = np.asarray(x, np.float64)
    return (x - x.mean(axes, keepdims=True)) / x.std(axes, keepdims=True)


def test_norms_standardise():
    """LayerNorm over channels; GroupNorm over pixels and the channels of a group; float32 inside.

    An offset of a thousand times the spread must not be lost to rounding.
    """
    x = 1000 + np.random.default_rng(0).standard_normal((2, 3, 4, 6)).astype("f4")
    scale, shift = np.random.default_rng(1).standard_normal((2, 6)).astype("f4")
    found = layers.layer_norm(x, scale, shift)
    np.testing.assert_allclose(found, standardised(x, 3) * scale + shift, atol=2e-3)
    found = layers.group_norm(x, 2, scale, shift)
    wanted = standardised(x.reshape(2, 3, 4, 2, 3), (1, 2, 4)).reshape(x.shape)
    np.testing.assert_allclose(found, wanted * scale + shift, atol=2e-3)
    assert layers.layer_norm(jnp.asarray(x, jnp.bfloat16), scale, shift).dtype == jnp.bfloat16


@pytest.mark.parametrize("tanh", [True, False])
def test_feed_forward_has_a_gelu(tanh):
    """x Phi(x) (arXiv:1606.08415), or its approximation by a tanh; they are 5e-4 apart."""
    layer = layers.FeedForward(7, jnp.dtype("float32"), tanh)
    x = np.linspace(-4, 4, 7).astype("f4")[None]
    eye = {"kernel": jnp.eye(7), "bias": jnp.zeros(7)}
    cubic = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    phi = np.tanh(cubic) if tanh else np.vectorize(math.erf)(x / np.sqrt(2))
    found = layer.apply({"params": {"in": eye, "out": eye}}, x)
    np.testing.assert_allclose(found, x * (1 + phi) / 2, atol=1e-6)


def test_attention_can_be_plain():
    """Without angles it has no norms and no positions: tokens may come in any order."""
    attention = layers.Attention(2, jnp.dtype("float32"), bias=False)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 7, 16)), jnp.float32)
    params = attention.init(jax.random.key(0), x)
    names = {"q_kernel", "k_kernel", "v_kernel", "out_kernel", "out_bias"}
    assert set(params["params"]) == names
    order = np.array([3, 1, 6, 0, 2, 5, 4])
    plain = np.asarray(attention.apply(params, x))
    np.testing.assert_allclose(attention.apply(params, x[:, order]), plain[:, order], atol=1e-6)
    with_bias = layers.Attention(2, jnp.dtype("float32")).init(jax.random.key(0), x)
    assert set(with_bias["params"]) == names | {"q_bias", "k_bias", "v_bias"}
