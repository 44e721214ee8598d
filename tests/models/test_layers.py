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
