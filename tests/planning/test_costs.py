"""What programs cost: cycles, rooflines and messages, on programs written here by hand."""

import pytest

from vitdiff_jax.planning import costs, hlo
from vitdiff_jax.runtime import chips

V5E, H100 = chips.parse("v5e:2x2"), chips.parse("h100:8")


def program(*lines, more=""):
    inside = "\n".join(f"  {line}" for line in lines)
    return hlo.Program(f"{more}\nENTRY %main (p: bf16[1000,1000]) -> bf16[] {{\n{inside}\n}}\n")


def cycles(count, name="block_0/mod"):
    path = f'metadata={{op_name="jit(f)/jvp(Model)/{name}/mul"}}'
    return f'{path}, backend_config={{"estimated_cycles":"{count}"}}'


P = "%p = bf16[1000,1000]{1,0} parameter(0)"
GROUPS = "replica_groups={{0,1,2,3}}"


def test_a_tpu_takes_the_compilers_cycles():
    text = [P, f"%a = bf16[8] fusion(%p), kind=kLoop, calls=%c, {cycles(1500)}",
            f"%b = bf16[8] copy(%a), {cycles(3000, 'head')}"]  # fmt: skip
    found = costs.estimate(program(*text, more="%c (x: bf16[8]) -> bf16[8] {\n}\n"), V5E, {})
    assert found.operations == {"block_0/mod": 1e-6, "head": 2e-6}
    assert found.seconds == pytest.approx(3e-6)


def test_a_message_takes_its_bytes_over_the_links():
    """2 MB, ring of four: each chip sends 2 x 3/4 of it."""
    found = costs.estimate(program(P, f"%r = bf16[1000,1000] all-reduce(%p), {GROUPS}"), V5E, {})
    assert found.communication == {"all-reduce": 3e6}
    assert found.seconds == found.communication_seconds == pytest.approx(3e6 / V5E.bandwidth())


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("%r = bf16[1000,1000] all-gather(%p)", 0.75 * 2e6),
        ("%r = bf16[1000,1000] reduce-scatter(%p)", 3 * 2e6),  # its type is the part that is kept
        ("%r = (bf16[4000,1000], bf16[1000,1000]) reduce-scatter-start(%p)", 3 * 2e6),
        ("%r = bf16[1000,1000] all-to-all(%p)", 0.75 * 2e6),
        ("%r = bf16[1000,1000] collective-permute(%p)", 2e6),
    ],
)
def test_bytes_by_the_ring_algorithm(line, sent):
    found = costs.estimate(program(P, f"{line}, {GROUPS}"), V5E, {})
    assert sum(found.communication.values()) == pytest.approx(sent)


@pytest.mark.parametrize("beside", [1500, 15_000_000])
def test_what_passes_beside_other_work_is_hidden(beside):
    text = [P, f"%s = (bf16[1000,1000], bf16[4000,1000]) all-gather-start(%p), {GROUPS}",
            f"%a = bf16[8] copy(%p), {cycles(beside)}",
            "%d = bf16[4000,1000] all-gather-done(%s)"]  # fmt: skip
    found = costs.estimate(program(*text), V5E, {})
    assert found.communication_seconds == pytest.approx(0.75 * 8e6 / V5E.bandwidth())
    assert found.hidden == pytest.approx(min(beside / 1.5e9, found.communication_seconds))
    longest = max(beside / 1.5e9, found.communication_seconds)
    assert found.seconds == pytest.approx(longest, rel=0.03)


def test_a_message_that_several_fusions_carry_counts_once():
    inside = (
        "%c{0} (x: bf16[1000,1000]) -> bf16[4000,1000] {{\n  %x = bf16[1000,1000] parameter(0)\n"
        "  %g = bf16[4000,1000] all-gather(%x), " + GROUPS.replace("{", "{{").replace("}", "}}")
        + ', frontend_attributes={{chain_id="7"}}\n}}\n'
    )  # fmt: skip
    text = [P] + [f"%f{i} = bf16[8] fusion(%p), kind=kCustom, calls=%c{i}, {cycles(30000)}"
                  for i in range(3)]  # fmt: skip
    more = "".join(inside.format(i) for i in range(3))
    found = costs.estimate(program(*text, more=more), V5E, {})
    assert found.communication == {"all-gather": 6e6}
    assert found.hidden == pytest.approx(60e-6)
    assert found.communication_seconds == pytest.approx(6e6 / V5E.bandwidth())


@pytest.mark.parametrize(
    ("groups", "size"),
    [("replica_groups={{0,1},{2,3}}", 2), ("replica_groups=[2,4]<=[8]", 4),
     ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", 2), ("channel_id=1", 16)],
)  # fmt: skip
def test_sizes_of_groups(groups, size):
    assert costs.group_size(f"{groups}, to_apply=%add", 16) == size


def test_a_gpu_is_as_slow_as_its_products_or_its_memory():
    numbers = '"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}'
    product = "(bf16[4096,4096]{1,0}, s8[33554432]{0}) custom-call(%p, %p)"
    text = ["%p = bf16[4096,4096]{1,0} parameter(0)",
            f'%g = {product}, custom_call_target="__cublas$lt$matmul", {{{numbers}}}',
            "%f = bf16[4096,4096]{1,0} fusion(%p), kind=kLoop, calls=%c"]  # fmt: skip
    found = costs.estimate(program(*text, more="%c (x: bf16[8]) -> bf16[8] {\n}\n"), H100, {})
    product, passes = 2 * 4096**3 / 989e12, 2 * 2 * 4096**2 / 3350e9
    assert found.seconds == pytest.approx(product + passes)


def test_a_slice_of_a_stack_is_read_alone():
    """As in a scan over blocks: the whole stack is an operand of every turn."""
    inside = (
        "%c (x: bf16[28,100], i: s32[]) -> bf16[1,100] {\n"
        "  %x = bf16[28,100] parameter(0)\n  %i = s32[] parameter(1)\n"
        "  ROOT %s = bf16[1,100] dynamic-slice(%x, %i, %i)\n}\n"
    )
    text = program(
        "%p = bf16[28,100] parameter(0)", "%i = s32[] parameter(1)",
        "%f = bf16[1,100] fusion(%p, %i), kind=kLoop, calls=%c", more=inside,
    )  # fmt: skip
    fusion = text.computations["main"]["f"]
    assert costs.traffic(fusion, text, "main") == pytest.approx(200 + 200 + 4, abs=4)


def test_a_kernel_of_unknown_cycles_is_an_error_not_nothing():
    call = '%k = bf16[8] custom-call(%p), custom_call_target="tpu_custom_call", kernel_name="fast"'
    with pytest.raises(costs.UnknownCost, match="number of cycles of the Pallas kernel 'fast'"):
        costs.estimate(program(P, call), V5E, {})
    assert costs.estimate(program(P, call), V5E, {"fast": 3e6}).seconds == pytest.approx(2e-3)
