"""Ahead-of-time compilation of a config's training step, in subprocesses.

JAX reads its settings once, at start-up, and a compiler that runs out of memory takes its process
down. So each compilation runs in its own process, `python -m vitdiff_jax.planning.aot`: the request
is a line of JSON on standard input, the result is on standard output. The process exits when its
input is closed, since its parent is then gone.
"""

import concurrent.futures
import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from vitdiff_jax.runtime import chips

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472  registers_per_core_limit: 65536
  registers_per_block_limit: 65536  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535
  block_dim_limit_z: 65535  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  l2_cache_size: 52428800  memory_bandwidth: 3352320000000  device_memory_size: 84978434048
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"  dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""XLA's description of the target GPU; plans for H200 and A100 use H100 code too."""


class CompileError(RuntimeError):
    """A compilation that failed; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What to compile: a complete config as plain data, image shape, conditions and topology.

    blocks: number of blocks of each kind, see the model's `block_counts`; None: all.
    """

    config: dict[str, Any]
    shape: tuple[int, int, int]
    conditions: dict[str, Any]
    topology: str
    blocks: dict[str, int] | None = None


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One compiled step, per device.

    bytes: of arguments, temporaries and new outputs. operations: seconds of computation, by module.
    communication: bytes sent, by kind of collective. communication_seconds: their time on the
    links; hidden: the part that overlaps with computation. out_of_memory: the compiler ran out of
    memory, and needs `bytes`.
    """

    bytes: dict[str, float]
    operations: dict[str, float]
    communication: dict[str, float]
    communication_seconds: float = 0.0
    hidden: float = 0.0
    out_of_memory: bool = False


def check(platform: str) -> None:
    """Raise CompileError if the compiler for "tpu" or "cuda" is not installed."""
    names = ("libtpu",) if platform == "tpu" else ("jax_cuda12_plugin", "jax_cuda13_plugin")
    if not any(importlib.util.find_spec(name) for name in names):
        what = "TPUs" if platform == "tpu" else "GPUs"
        raise CompileError(f'plans for {what} need their compiler: pip install "vitdiff_jax[plan]"')


def compile_all(requests: Sequence[Request]) -> list[Compiled]:
    """Compile each in its own process, in parallel on all cores, at most four."""
    for request in requests:
        check(chips.parse(request.topology).chip.platform)
    with concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(_in_subprocess, requests))


def _in_subprocess(request: Request) -> Compiled:
    platform = chips.parse(request.topology).chip.platform
    reading, writing = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-m", "vitdiff_jax.planning.aot"], env=os.environ | environment(platform),
        stdin=reading, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(reading)
    with open(writing, "w") as line:  # stays open until the result arrives
        print(json.dumps(dataclasses.asdict(request)), file=line, flush=True)
        answer, errors = child.communicate()
    if child.returncode:
        lines = [line for line in errors.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"exit code {child.returncode}"
        raise CompileError(f"compiling for {request.topology} failed: {reason[:500]}")
    return Compiled(**json.loads(answer.splitlines()[-1]))


def environment(platform: str) -> dict[str, str]:
    """Environment variables to compile for "tpu" or "cuda" without such a device."""
    shared = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    if platform == "cuda":  # autotuning, which Triton GEMMs need, requires a GPU
        return shared | {
            "XLA_FLAGS": "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
        }
    return shared | {
        "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }  # fmt: skip


def main() -> None:
    """Entry point of the subprocess."""
    given = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    request = Request(**given | {"shape": tuple(given["shape"])})
    print(json.dumps(dataclasses.asdict(_compile(request))))


def _end_with_input() -> None:
    os.read(sys.stdin.fileno(), 1)  # not sys.stdin.read(), which would hold a lock at exit
    os._exit(1)  # nothing else interrupts a running compiler


def _compile(request: Request) -> Compiled:
    # Imported here: the parent process needs neither these nor the JAX settings.
    from vitdiff_jax.planning import costs, hlo, kernels

    target = chips.parse(request.topology)
    try:
        compiled = lower(request).compile()
    except Exception as error:
        return Compiled({"temporaries": _needed(error)}, {}, {}, out_of_memory=True)
    memory, program = compiled.memory_analysis(), hlo.Program(compiled.as_text())
    found = costs.estimate(program, target, kernels.cycles_of(program, request.topology))
    return Compiled(
        {
            "arguments": memory.argument_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        },
        dict(found.operations), dict(found.communication), found.communication_seconds,
        found.hidden,
    )  # fmt: skip


def lower(request: Request) -> Any:
    """The training step of a request, lowered for its topology."""
    from vitdiff_jax.experiment import build as experiment_lib
    from vitdiff_jax.experiment import config as config_lib
    from vitdiff_jax.runtime import parallel
    from vitdiff_jax.training import program

    config: Any = config_lib.complete(request.config)
    experiment = experiment_lib.build(config, request.shape, request.conditions)
    if request.blocks is not None:
        model = experiment.model.with_block_counts(request.blocks)
        experiment = dataclasses.replace(experiment, model=model)
    mesh = parallel.make_mesh(config.parallel.fsdp, devices(request.topology))
    built = program.build(config, experiment, mesh)
    return built.step.lower(built.shapes, program.batch_shapes(config, experiment))


def devices(topology: str) -> Sequence[Any]:
    """The JAX devices of a topology."""
    from jax.experimental import topologies

    target = chips.parse(topology)
    if target.chip.platform == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    shape = f"1x1x{target.count}"
    return topologies.get_topology_desc(
        shape, platform="cuda", topology=shape, target_config=H100
    ).devices


def _needed(error: Exception) -> float:
    """The memory in bytes from an out-of-memory error of a compiler; re-raises other errors."""
    found = re.search(r"Used ([\d.]+[KMGT]) of|\(([\d.]+[KMGT])\) exceeds available", str(error))
    if not found:
        raise error
    size = found[1] or found[2]
    return float(size[:-1]) * 2 ** (10 * ("KMGT".index(size[-1]) + 1))


def extrapolate(base: Compiled, more: Mapping[str, tuple[Compiled, int]], left: Mapping[str, int]):
    """Extrapolate linearly from `base` by `left` further blocks of each kind.

    more: for each kind, a compiled model with additional blocks of it, and their number. Time,
    memory and communication grow linearly with the number of blocks.
    """
    scalars = ("communication_seconds", "hidden")

    def numbers(compiled: Compiled) -> dict[tuple[str, str], float]:
        found = {("", name): getattr(compiled, name) for name in scalars}
        for field in ("bytes", "operations", "communication"):
            for name, value in getattr(compiled, field).items():
                key = (field, re.sub(r"block_\d+", "block", name))
                found[key] = found.get(key, 0.0) + value
        return found

    total = start = numbers(base)
    for kind, (larger, count) in more.items():
        grown = numbers(larger)
        share = left[kind] / count
        total = {
            key: total.get(key, 0.0) + share * (grown.get(key, 0.0) - start.get(key, 0.0))
            for key in total.keys() | grown.keys()
        }
    fields = {
        field: {name: value for (of, name), value in total.items() if of == field}
        for field in ("bytes", "operations", "communication")
    }
    return Compiled(
        **fields, communication_seconds=total["", "communication_seconds"],
        hidden=total["", "hidden"],
        out_of_memory=base.out_of_memory or any(c.out_of_memory for c, _ in more.values()),
    )  # fmt: skip


if __name__ == "__main__":
    main()
