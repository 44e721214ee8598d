"""Floating-point operations of matrix products, against counting by hand and by XLA."""

import jax
import jax.numpy as jnp
import pytest

from vitdiff_jax.models import dit
from vitdiff_jax.runtime import flops


def shape(*size):
    return jax.ShapeDtypeStruct(size, jnp.float32)


def test_products_count_two_for_each_multiply_add():
    assert flops.count(lambda a, b: jax.nn.relu(a @ b), shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7
    batched = flops.count(
        lambda a, b: jnp.einsum("bij,bjk->bik", a, b), shape(4, 3, 5), shape(4, 5, 7)
    )
    assert batched == 4 * 2 * 3 * 5 * 7


def test_convolutions_count_their_kernel_at_each_place():
    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=numbers)

    assert flops.count(convolve, shape(1, 8, 8, 3), shape(3, 3, 3, 16)) == 2 * 4 * 4 * 16 * 9 * 3


def test_loops_count_as_often_as_they_run_and_branches_the_longer_one():
    def loop(a):
        return jax.lax.scan(lambda x, _: (x @ a, None), a, length=6)[0]

    def branch(a):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ a @ a, lambda: a @ a)

    assert flops.count(loop, shape(4, 4)) == 6 * 2 * 4**3
    assert flops.count(branch, shape(4, 4)) == 2 * 2 * 4**3


@pytest.mark.parametrize(
    "options",
    [dict(scan=True), *(pytest.param(o, marks=pytest.mark.slow) for o in ({}, {"remat": "full"}))],
    ids=str,
)
def test_dit_xl_has_the_papers_number(options):
    """Table 4 of arXiv:2212.09748: 118.6 "Gflops", which are multiply-adds."""
    model = dit.Model({"label": (1000,)}, size="XL", patch=2, **options)
    arguments = shape(1, 32, 32, 4), shape(1), {"label": jax.ShapeDtypeStruct((1,), jnp.int32)}
    params = jax.eval_shape(lambda *a: model.init(jax.random.key(0), *a), *arguments)
    assert flops.count(model.apply, params, *arguments) / 2e9 == pytest.approx(118.6, abs=0.05)
