"""What TPUs are given in XLA's operations, computed here: formulas in float64 decide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_attention import compared, example
from tests.models.tiny_models import denoiser, inputs, shape_of, tiny_params
from vitdiff_jax.models import attention, attention_tpu, layers

PARTS = 2 * 3 * 40**2 * 4, attention_tpu.CHUNK


def error(dtype, given, mask=None):
    """The largest of the result and of the gradients, against float64."""
    (found,) = compared(dtype, given, mask, [attention_tpu.attention])
    return found.max()


@pytest.mark.parametrize("part", [pytest.param(1, marks=pytest.mark.slow), *PARTS])
def test_attention_is_a_softmax(part, monkeypatch):
    """One head at a time, two, or all: 1e-5 in float32, 1 % in bfloat16."""
    monkeypatch.setattr(attention_tpu, "CHUNK", part)
    given = example(3, 4, 8, 40)
    assert error(jnp.float32, given) < 1e-5
    assert error(jnp.bfloat16, given) < 1e-2


def test_only_so_many_heads_at_a_time(monkeypatch):
    """By the scores of each device's own images."""
    monkeypatch.setattr(attention_tpu, "CHUNK", 2 * 3 * 40**2 * 4)
    q = jax.ShapeDtypeStruct((6, 4, 8, 40), jnp.float32)
    for cut, heads in ((1, 1), (2, 2), (4, 4)):
        jaxpr = str(
            jax.make_jaxpr(lambda q, cut=cut: attention_tpu.attention(q, q, q, None, cut))(q)
        )
        assert f"f32[6,{heads},40,40]" in jaxpr


def test_large_scores_do_not_overflow():
    """Scores of hundreds, and of ten thousands: their own rounding is then that of the result."""
    for scale, least in ((100.0, 1e-4), (1e4, 1e-2)):
        assert error(jnp.float32, example(1, 2, 16, 40, scale=scale)) < least


def test_attention_looks_where_the_mask_says():
    mask = np.arange(40) % np.array([[1], [2], [5]]) == 0
    assert error(jnp.float32, example(3, 2, 8, 40), mask) < 1e-5


def test_attention_to_nothing_is_finite():
    q, k, v = (jnp.asarray(a, jnp.float32) for a in example(1, 2, 8, 7)[:3])
    nothing = jnp.zeros((1, 7), bool)
    out, back = jax.vjp(lambda *qkv: attention_tpu.attention(*qkv, nothing), q, k, v)
    assert all(np.isfinite(a).all() for a in (out, *back(out)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_halves_are_swapped_exactly(dtype):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 8, 5)), dtype)
    np.testing.assert_array_equal(attention_tpu.halves_swapped(x), jnp.roll(x, 4, 2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["TPU v5 lite", "NVIDIA H100"])
@pytest.mark.parametrize("name", ["vit", "dit", "uvit"])
def test_denoisers_are_the_same_on_every_chip(name, kind, monkeypatch):
    """Result and gradients of everything that is written in another way for TPUs or GPUs."""
    model = denoiser(name, "all", attention="xla")
    params, given = tiny_params(name, "all"), inputs("all", shape_of(model))

    def result(params):
        def loss(params):
            out = model.apply({"params": params}, *given)
            return jnp.sum(jnp.sin(out)), out

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    (_, out), slopes = result(params)
    for module in (layers, attention):
        monkeypatch.setattr(module, "device_kind", lambda: kind)
    (_, out_there), slopes_there = result(params)
    np.testing.assert_allclose(out_there, out, atol=1e-5 * abs(out).max())
    largest = max(abs(a).max() for a in jax.tree.leaves(slopes))
    for found, wanted in zip(jax.tree.leaves(slopes_there), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6 * largest)
