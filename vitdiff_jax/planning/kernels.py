"""Cycles of the Pallas kernels in a program that was compiled for a TPU.

XLA's estimates leave kernels out. But of a kernel that is compiled alone the compiler can write
down of how many bundles, each of one cycle, a step of its grid consists; ours have no loops, so
that each is run once. It takes that times the steps, or as long as its operands come and go, if
that is longer. By hand, in the environment of `ahead.environment`:

    python -m vitdiff_jax.planning.kernels v5e:2x2 attention_forward_32x16x72x256_bfloat16
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable

from vitdiff_jax.models import attention_kernel
from vitdiff_jax.planning import hlo
from vitdiff_jax.runtime import chips

STREAMED = 0.81  # of the data sheet's bandwidth, as XLA's estimates of elementwise passes have it
NAME = re.compile(
    r"attention_(?P<pass>forward|backward)_(?P<sizes>[\dx]+)_(?P<dtype>bfloat16|float32)"
    r"(?P<turned>_turned)?(?P<masked>_masked)?"
)


def cycles_of(program: hlo.Program, topology: str) -> dict[str, float]:
    """{name of a kernel: its cycles}, of each kernel that the program calls."""
    kernels = [one for one, _, _ in program.executed() if "tpu_custom_call" in one.rest]
    return cycles({found[0] for one in kernels if (found := NAME.search(one.name))}, topology)


def cycles(names: Iterable[str], topology: str) -> dict[str, float]:
    """Cycles of these kernels of ours on the chips of a slice, such as "v5e:2x2"."""
    return {name: max(bundles(name, topology), _streaming(name, topology)) for name in names}


def bundles(name: str, topology: str) -> int:
    """Of all steps of a kernel's grid. Raises RuntimeError where the compiler does not say."""
    with tempfile.TemporaryDirectory() as folder:
        # The compiler reads where to write its schedules when it is loaded: a process of its own.
        written = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        flags = {"LIBTPU_INIT_ARGS": f"{written} --xla_jf_emit_annotations=true"}
        run = [sys.executable, "-m", "vitdiff_jax.planning.kernels", "--compile", topology, name]
        done = subprocess.run(
            run, env=os.environ | flags, capture_output=True, text=True, check=False
        )
        found = pathlib.Path(folder).glob(f"*-{name}.*schedule-analysis_final_bundles.txt")
        counts = [re.search(r"total scheduled bundles: *(\d+)", a.read_text()) for a in found]
    if done.returncode or len(counts) != 1 or counts[0] is None:
        raise RuntimeError(f"{name} could not be compiled alone: {done.stderr[-500:]}")
    (batch, heads, head_dim, tokens), itemsize = _operand(name)
    taken, _ = attention_kernel.steps(heads, head_dim, tokens, itemsize) or (1, 0)
    return int(counts[0][1]) * batch * (heads // taken)


def _streaming(name: str, topology: str) -> float:
    """The cycles in which the large operands come from memory and go there."""
    (batch, heads, head_dim, tokens), itemsize = _operand(name)
    one = batch * heads * head_dim * -(-tokens // 128) * 128 * itemsize  # tokens lie in 128 lanes
    count = 4 if "forward" in name else 7
    chip = chips.parse(topology).chip
    return count * one / (STREAMED * chip.bandwidth) * chip.clock


def _operand(name: str) -> tuple[list[int], int]:
    """The shape [B, H, K, N] of a kernel's operands and the bytes of an element."""
    found = NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name}: not the name of a kernel")
    return [int(n) for n in found["sizes"].split("x")], 2 if found["dtype"] == "bfloat16" else 4


def _compile(topology: str, name: str) -> None:
    """Compile the kernel alone, as a child of `bundles` does."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    found, (shape, _) = NAME.fullmatch(name), _operand(name)
    assert found is not None
    batch, _, head_dim, tokens = shape
    q = jax.ShapeDtypeStruct(tuple(shape), found["dtype"])
    scale = jax.ShapeDtypeStruct((head_dim,), jnp.float32)
    angles = jax.ShapeDtypeStruct((head_dim // 2, tokens), jnp.float32)
    turn = (scale, scale, angles) if found["turned"] else None
    mask = jax.ShapeDtypeStruct((batch, tokens), bool) if found["masked"] else None

    def both(q, k, v, turn, mask, d_out):
        def attend(*operands):
            return attention_kernel.attention(*operands, mask)

        out, back = jax.vjp(attend, q, k, v, turn)
        return out, back(d_out)

    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    where = SingleDeviceSharding(device)
    alone = jax.jit(both, in_shardings=where, out_shardings=where)
    alone.lower(q, q, q, turn, mask, q).compile()


if __name__ == "__main__":
    if sys.argv[1] == "--compile":
        _compile(*sys.argv[2:])
    else:
        for each, count in cycles(sys.argv[2:], sys.argv[1]).items():
            print(f"{each}: {count:.0f} cycles")
