"""The autoencoder by what it must be; see `parity` for diffusers' own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parts import quick
from vitdiff_jax.models.autoencoder import Autoencoder

TINY = dict(channels=(8, 16), blocks=1, groups=4)
SHAPE = (4, 6, 3)


@functools.cache
def variables(**options):
    """All parameters of the tiny autoencoder at random; those of norms around 1."""
    model, random = Autoencoder(**TINY | options), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))

    def draw(path, leaf):
        center = 1.0 if "norm" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(center + 0.3 * random.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def compiled(method, **options):
    """(variables, images or latents) -> what `method` makes of them."""
    model = Autoencoder(**TINY | options)
    return jax.jit(lambda variables, value: model.apply(variables, value, method=method))


def images(batch=3, shape=SHAPE):
    return np.random.default_rng(1).uniform(-1, 1, (batch, *shape)).astype(np.float32)


def latents(batch=3, shape=(2, 3, 4)):
    return np.random.default_rng(2).standard_normal((batch, *shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((8, 4, 3), dict()),
        ((8, 16, 3), dict(channels=(4, 8, 8, 4), dtype="bfloat16")),
        ((3, 5, 3), dict(channels=(8,), latent_channels=16, blocks=2)),
    ],
)
def test_shapes_and_back(shape, options):
    """Half the size for each level but the first, float32 also where the products are bf16."""
    model = Autoencoder(**TINY | options)
    model.check(shape)
    x = jnp.zeros((2, *shape))
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    moments = jax.eval_shape(lambda v: model.apply(v, x, method="encode"), params)
    small = (shape[0] // model.factor, shape[1] // model.factor)
    for part in moments:
        assert (part.shape, part.dtype) == ((2, *small, model.latent_channels), jnp.float32)
    z = jnp.zeros(moments[0].shape)
    back = jax.eval_shape(lambda v: model.apply(v, z, method="decode"), params)
    assert (back.shape, back.dtype) == (x.shape, jnp.float32)


def test_the_default_is_stable_diffusions():
    """84 million parameters, latents smaller by 8 (arXiv:2112.10752, KL-f8)."""
    model = Autoencoder()
    model.check((256, 256, 3))
    assert model.factor == 8
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert abs(count / 83.65e6 - 1) < 1e-3


@pytest.mark.slow
def test_latents_are_scaled_in_here_alone():
    """With another factor the same network has the same images, and latents that much larger."""
    weights, factor = variables(), Autoencoder().scaling_factor
    mean, log_variance = compiled("encode", scaling_factor=1.0)(weights, images())
    scaled, scaled_log_variance = compiled("encode")(weights, images())
    np.testing.assert_allclose(scaled, factor * mean, rtol=1e-5, atol=1e-6)
    std, scaled_std = jnp.exp(log_variance / 2), jnp.exp(scaled_log_variance / 2)
    np.testing.assert_allclose(scaled_std, factor * std, rtol=1e-4)
    plain = compiled("decode", scaling_factor=1.0)(weights, latents())
    found = compiled("decode")(weights, factor * latents())
    assert abs(plain).max() > 0.1
    np.testing.assert_allclose(found, plain, atol=1e-5 * abs(plain).max())


def test_log_variances_stay_finite():
    """Between -30 and 20 before scaling: a drawn latent neither overflows nor needs a division."""
    weights = variables()
    params = weights["params"]
    bias = params["to_moments"]["bias"].at[4:].set(jnp.array([1e3, -1e3, 0.0, 0.0]))
    moments = params["to_moments"] | {"bias": bias}
    found = compiled("encode", scaling_factor=1.0)(
        {"params": params | {"to_moments": moments}}, images()
    )[1]
    np.testing.assert_array_equal(found[..., 0], 20.0)
    np.testing.assert_array_equal(found[..., 1], -30.0)
    assert (abs(found[..., 2:]) < 20).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", quick({"decode"}, ["encode", "decode"]))
def test_bfloat16_is_close(method):
    """bf16 has 8 bits: products are off by 0.4 %, and outputs by a few of these."""
    value = images() if method == "encode" else latents()
    plain, rounded = (
        jax.tree.leaves(compiled(method, **options)(variables(), value))[0]
        for options in ({}, dict(dtype="bfloat16"))
    )
    assert 0 < abs(rounded - plain).max() < 0.05 * abs(plain).max()


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_every_pixel_matters_to_its_own_image_only(method):
    """To all of it: the middle looks everywhere."""
    value = images() if method == "encode" else latents()
    apply, weights = compiled(method), variables()
    moved = value.copy()
    moved[1, 0, 0, 0] += 1.0
    plain, found = (apply(weights, v) for v in (value, moved))
    if method == "encode":
        plain, found = (jnp.concatenate(parts, -1) for parts in (plain, found))
    apart = np.asarray(abs(found - plain))
    assert apart[[0, 2]].max() == 0
    assert (apart[1].max(-1) > 1e-6).all()


def inside(method, value):
    """What goes through the layers: {path: output}."""
    model = Autoencoder(**TINY)
    apply = functools.partial(model.apply, method=method, capture_intermediates=True)
    return jax.jit(apply)(variables(), value)[1]["intermediates"]


def convolved(x, layer, stride, before, after):
    """A 3x3 convolution of [B, H, W, C] with zeros around it, tap by tap."""
    x = np.pad(np.asarray(x), ((0, 0), (before, after), (before, after), (0, 0)))
    rows, cols = (x.shape[1] - 3) // stride + 1, (x.shape[2] - 3) // stride + 1
    y = np.zeros((len(x), rows, cols, layer["kernel"].shape[-1]))
    for i in range(3):
        for j in range(3):
            taps = x[:, i : i + stride * rows : stride, j : j + stride * cols : stride]
            y += taps @ np.asarray(layer["kernel"])[i, j]
    return y + np.asarray(layer["bias"])


def test_halving_pads_below_and_at_the_right():
    """One row and one column of zeros, and none above or at the left."""
    part = inside("encode", images())["encoder"]
    layer = variables()["params"]["encoder"]["halve_0"]
    wanted = convolved(part["level_0_block_0"]["__call__"][0], layer, 2, 0, 1)
    np.testing.assert_allclose(part["halve_0"]["__call__"][0], wanted, atol=1e-4)


def test_doubling_repeats_pixels():
    """Each becomes four, then comes a convolution."""
    part = inside("decode", latents())["decoder"]
    layer = variables()["params"]["decoder"]["double_1"]
    x = np.kron(np.asarray(part["level_1_block_1"]["__call__"][0]), np.ones((1, 2, 2, 1)))
    wanted = convolved(x, layer, 1, 1, 1)
    np.testing.assert_allclose(part["double_1"]["__call__"][0], wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        (dict(), (5, 4, 3), "channels: 2 levels downsample by 2, which does not divide the 5x4"),
        (dict(channels=(8, 8, 8)), (4, 6, 3), "channels: 3 levels downsample by 4, which does"),
        (dict(), (4, 4, 1), "images: 1 channels"),
        (dict(channels=()), SHAPE, "channels: "),
        (dict(channels=(8, 0)), SHAPE, "channels: "),
        (dict(channels=(8, 6)), SHAPE, "groups: 4 does not divide the channels"),
        (dict(groups=0), SHAPE, "groups: 0"),
        (dict(blocks=0), SHAPE, "blocks: 0"),
        (dict(latent_channels=0), SHAPE, "latent_channels: 0"),
        (dict(scaling_factor=0.0), SHAPE, "scaling_factor: 0.0"),
        (dict(dtype="float16"), SHAPE, "dtype: 'float16'"),
    ],
)
def test_check_names_the_option(options, shape, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Autoencoder(**TINY | options).check(shape)
