"""What the Pallas kernels cost, as the TPU compiler says: against what the chip can do at best."""

import importlib.util
import math

import jax
import jax.numpy as jnp
import pytest

from vitdiff_jax.models import attention_kernel
from vitdiff_jax.planning import aot, hlo, kernels

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU's compiler"
)


@pytest.fixture
def _no_tpu_here(monkeypatch):
    for name, value in aot.environment("tpu").items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
@pytest.mark.extra
@needs_libtpu
@pytest.mark.usefixtures("_no_tpu_here")
def test_cycles_are_possible_and_grow_with_the_batch():
    """No fewer than the products take at the peak of 65,536 multiply-adds; ten times is too many.

    Twice the images are twice the steps of the same program.
    """
    names = [f"attention_forward_{batch}x4x64x128_bfloat16" for batch in (2, 4)]
    found = kernels.cycles(names, "v5e:2x2")
    products = 2 * 2 * 4 * 64 * 128**2 / 65536
    assert products < found[names[0]] < 10 * products + 2000
    assert found[names[1]] == 2 * found[names[0]]


@pytest.mark.slow
@pytest.mark.extra
@needs_libtpu
@pytest.mark.usefixtures("_no_tpu_here")
def test_a_kernel_that_does_not_compile_is_an_error():
    with pytest.raises(RuntimeError, match="attention_forward_1x1x64x4096_bfloat16 could not be"):
        kernels.bundles("attention_forward_1x1x64x4096_bfloat16", "v5e:2x2")


def test_few_operations_cost_their_operands(monkeypatch):
    """A kernel that had nothing to do would take as long as its operands come and go."""
    monkeypatch.setattr(kernels, "bundles", lambda *_: 1)
    names = ("attention_forward_3x2x64x200_float32", "attention_backward_3x2x64x200_float32")
    found = kernels.cycles(names, "v5e:2x2")
    one = 3 * 2 * 64 * 256 * 4 / (0.81 * 819e9) * 1.5e9  # 200 tokens lie in two rows of 128
    assert math.isclose(found[names[0]], 4 * one, rel_tol=1e-6)
    assert math.isclose(found[names[1]], 7 * one, rel_tol=1e-6)


def test_the_kernels_of_a_program_are_found_by_their_names(monkeypatch):
    """As they were named when they were made, once each however often they are called."""
    x = jax.ShapeDtypeStruct((2, 4, 64, 288), jnp.bfloat16)
    lowered = jax.jit(attention_kernel.attention).trace(x, x, x).lower(lowering_platforms=("tpu",))
    name = "attention_forward_2x4x64x288_bfloat16"
    assert f'kernel_name = "{name}"' in lowered.as_text()
    calls = "".join(
        f'  %{name}.{i} = bf16[2,4,64,288] custom-call(%x), custom_call_target="tpu_custom_call"\n'
        for i in (1, 2)
    )
    head = "ENTRY %main (x: bf16[2,4,64,288]) -> bf16[2,4,64,288] {"
    text = f"{head}\n  %x = bf16[2,4,64,288] parameter(0)\n{calls}}}\n"
    monkeypatch.setattr(kernels, "bundles", lambda *_: 10**9)
    assert kernels.cycles_of(hlo.Program(text), "v5e:2x2") == {name: 10**9}
