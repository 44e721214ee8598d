"""Cycles of the Pallas kernels in a program compiled for a TPU.

XLA's cycle estimates exclude kernels. When a kernel is compiled on its own, however, the compiler
can dump the number of VLIW bundles, one cycle each, of a grid step; our kernels have no loops, so
each bundle executes once. The estimate is that number times the grid steps, or the time to stream
the operands if that is longer. On the command line, with the variables of `aot.environment`:

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

STREAMED = 0.81  # of the data sheet's bandwidth, as in XLA's estimates of elementwise operations
NAME = re.compile(
    r"attention_(?P<pass>forward|backward)_(?P<sizes>[\dx]+)_(?P<dtype>bfloat16|float32)"
    r"(?P<turned>_turned)?(?P<masked>_masked)?"
)


def cycles_of(program: hlo.Program, topology: str) -> dict[str, float]:
    """{kernel name: cycles} for each kernel that the program calls."""
    kernels = [one for one, _, _ in program.executed() if "tpu_custom_call" in one.rest]
    return cycles({found[0] for one in kernels if (found := NAME.search(one.name))}, topology)


def cycles(names: Iterable[str], topology: str) -> dict[str, float]:
    """Cycles of these kernels on a topology, such as "v5e:2x2"."""
    return {name: max(bundles(name, topology), _streaming(name, topology)) for name in names}


def bundles(name: str, topology: str) -> int:
    """Bundles over a kernel's grid; RuntimeError if the compiler does not report them."""
    with tempfile.TemporaryDirectory() as folder:
        # In a subprocess: the compiler reads the dump folder when it is loaded.
        written = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        flags = {"LIBTPU_INIT_ARGS": f"{written} --xla_jf_emit_annotations=true"}
        run = [sys.executable, "-m", "vitdiff_jax.planning.kernels", "--compile", topology, name]
        done = subprocess.run(
            run, env=os.environ | flags, capture_output=True, text=True, check=False
        )
        found = pathlib.Path(folder).glob(f"*-{name}.*schedule-analysis_final_bundles.txt")
        counts = [re.search(r"total scheduled bundles: *(\d+)", a.read_text()) for a in found]
    if done.returncode or len(counts) != 1 or counts[0] is None:
        raise RuntimeError(f"{name} could not be compiled on its own: {done.stderr[-500:]}")
    (batch, heads, head_dim, tokens), itemsize = _operand(name)
    taken, _ = attention_kernel.block_sizes(heads, head_dim, tokens, itemsize) or (1, 0)
    return int(counts[0][1]) * batch * (heads // taken)


def _streaming(name: str, topology: str) -> float:
    """Cycles to stream the large operands from and to memory."""
    (batch, heads, head_dim, tokens), itemsize = _operand(name)
    one = batch * heads * head_dim * -(-tokens // 128) * 128 * itemsize  # tokens on 128 lanes
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
    """Compile a kernel on its own, in the subprocess of `bundles`."""
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
