"""The parts that denoisers share, by their formulas in float64 or by what they must leave alone."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitdiff_jax.models import layers


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


def test_layer_norm_in_one_pass():
    """As exact in bfloat16 as its numbers are: the offset leaves a hundred of them."""
    x = jnp.asarray(10 + np.random.default_rng(0).standard_normal((8, 512)), jnp.bfloat16)
    found = layers.layer_norm(x, jnp.float32(1), jnp.float32(0))
    np.testing.assert_allclose(found.astype("f4"), standardised(x, 1), atol=2**-7)
    assert np.isfinite(layers.layer_norm(x[:, :1] + 0 * x, 1.0, 0.0)).all()  # no spread at all


@pytest.mark.parametrize("kind", ["cpu", "TPU v5 lite"])
@pytest.mark.parametrize("shape", [(1, 3, 4, 1), (1, 1, 1, 5), (2, 1, 4, 5), (2, 3, 4, 5)])
def test_spread_is_a_broadcast(kind, shape, monkeypatch):
    """With its gradient, forwards and backwards."""
    monkeypatch.setattr(layers, "device_kind", lambda: kind)
    random = np.random.default_rng(0)
    a, weight = jnp.asarray(random.random(shape)), jnp.asarray(random.random((2, 3, 4, 5)))
    value, back = jax.vjp(lambda a: layers.broadcast_to(a, weight.shape), a)
    np.testing.assert_array_equal(value, jnp.broadcast_to(a, weight.shape))
    axes = tuple(i for i in range(4) if shape[i] != weight.shape[i])
    np.testing.assert_allclose(back(weight)[0], weight.sum(axes, keepdims=True), rtol=1e-6)
    _, tangent = jax.jvp(lambda a: layers.broadcast_to(a, weight.shape), (a,), (a,))
    np.testing.assert_array_equal(tangent, value)


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


def test_dropout_keeps_the_expectation():
    """Kept entries grow by 1 / (1 - rate); the share that is dropped is the rate (5 sigma)."""
    keys = jax.random.split(jax.random.key(0), 4)
    dropped = np.asarray(layers.dropout(jnp.ones((4, 50, 100)), keys, jnp.float32(0.2)))
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / np.float32(0.8))}
    assert abs((dropped == 0).mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / dropped.size)
    assert (dropped[0] != dropped[1]).any()
