"""Reading HLO text: programs that XLA has just compiled here, and the TPU compiler's own form."""

import jax
import jax.numpy as jnp
import pytest

from vitdiff_jax.planning import costs, hlo

TPU = """HloModule jit_step, is_scheduled=true

%body.1 (state.1: (s32[], bf16[8,8])) -> (s32[], bf16[8,8]) {
  %state.1 = (s32[]{:T(128)}, bf16[8,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %fusion.1 = bf16[8,8]{1,0:T(8,128)(2,1)} fusion(%state.1), kind=kOutput, calls=%inner, \
metadata={op_name="jit(step)/jvp(Model)/block_0/mod/dot_general" source_file="a
} .py"}, backend_config={"window_config":{"estimated_cycles":"70"}}
  ROOT %tuple.1 = (s32[], bf16[8,8]) tuple(%state.1, %fusion.1)
}

%condition.1 (state.2: (s32[], bf16[8,8])) -> pred[] {
  %state.2 = (s32[], bf16[8,8]) parameter(0)
  %constant.2 = s32[]{:T(128)} constant(5)
  ROOT %compare.1 = pred[] fusion(%state.2, %constant.2), kind=kLoop, calls=%less
}

%less (a: s32[], b: s32[]) -> pred[] {
  %constant.3 = s32[] constant(2)
  ROOT %less.1 = pred[] compare(%a, %b), direction=LT
}

%long (p: bf16[8,8]) -> bf16[8,8] {
  ROOT %copy.1 = bf16[8,8] copy(%p), backend_config={"estimated_cycles":"1000"}
}

%short (p: bf16[8,8]) -> bf16[8,8] {
  %copy.2 = bf16[8,8] copy(%p), backend_config={"estimated_cycles":"1"}
  ROOT %copy.3 = bf16[8,8] copy(%copy.2), backend_config={"estimated_cycles":"1"}
}

ENTRY %main (p.1: bf16[8,8]) -> bf16[8,8] {
  %p.1 = bf16[8,8]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="state"}
  %while.1 = (s32[], bf16[8,8]) while(%p.1), condition=%condition.1, body=%body.1
  %gte = bf16[8,8] get-tuple-element(%while.1), index=1
  ROOT %conditional.1 = bf16[8,8] conditional(%gte, %gte, %gte), branch_computations={%short, %long}
}
"""


def test_loops_branches_and_metadata_that_looks_like_an_end():
    found = [(one.name, times) for one, _, times in hlo.Program(TPU).executed()]
    assert found == [("fusion.1", 5), ("copy.1", 1)]
    fusion = hlo.Program(TPU).computations["body.1"]["fusion.1"]
    assert (fusion.cycles, fusion.path) == (70, "block_0/mod")


@pytest.mark.parametrize(
    ("shape", "size"),
    [("f32[]", 4), ("bf16[2,3]{1,0:T(8,128)(2,1)}", 12), ("(f32[2]{0}, /*index=1*/s8[3])", 11),
     ("pred[5]", 5), ("token[]", 0)],
)  # fmt: skip
def test_bytes_of_types(shape, size):
    assert hlo.size_of(shape) == size


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("jit(train_step)/jvp(Model)/block_1/mod/dot_general", "block_1/mod"),
        ("jit(train_step)/transpose(jvp(Model))/block_1/mod/mul", "block_1/mod (backward)"),
        ("jit(train_step)/jvp(Model)/Model._blocks/block_0/add", "block_0"),
        ("jit(train_step)/cond/branch_1_fun/mul", "cond"),
        ("jit(f)/add", ""),
    ],
)
def test_paths_are_the_models_names(name, path):
    assert hlo.model_path(name) == path


def test_products_of_a_program_that_xla_compiled():
    """A scan of five products and a convolution, whatever XLA made of them on this machine."""

    def f(a, image, kernel):
        y = jax.lax.scan(lambda x, _: (jnp.tanh(x @ a), None), a, length=5)[0]
        return y, jax.lax.conv(image, kernel, (1, 1), "VALID")

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in [(64, 64), (1, 3, 9, 9), (8, 3, 2, 2)]]
    program = hlo.Program(jax.jit(f).lower(*shapes).compile().as_text())
    found = sum(
        times * costs.flops(one, program, where) for one, where, times in program.executed()
    )
    assert found == 5 * 2 * 64**3 + 2 * 8 * 8 * 8 * 3 * 4
