"""Cost model of a compiled program: time of its operations, and communication between chips.

TPUs: the compiler's own cycle estimate of each operation. GPUs, for which there is none: a
roofline, i.e. the larger of FLOPs over peak FLOP/s and bytes over memory bandwidth, per operation.
It is a lower bound, and is labelled as such.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping

from vitdiff_jax.planning import hlo
from vitdiff_jax.runtime.chips import Slice

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class UnknownCost(ValueError):
    """An operation whose duration is unknown; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs of one execution of a program, per device.

    operations: seconds of computation, by module of the model. communication: bytes sent, by kind
    of collective. communication_seconds: time of the collectives on the links of the slice, each
    on its own; hidden: the part that overlaps with computation.
    """

    operations: Mapping[str, float]
    communication: Mapping[str, float]
    communication_seconds: float
    hidden: float

    @property
    def seconds(self) -> float:
        """Total: computation, and communication that is not hidden."""
        return sum(self.operations.values()) + self.communication_seconds - self.hidden


def estimate(program: hlo.Program, target: Slice, kernels: Mapping[str, float]) -> Costs:
    """Estimate the costs of a program compiled for the target.

    kernels: cycles of each Pallas kernel by name, which the compiler does not report.
    """
    operations: dict[str, float] = collections.defaultdict(float)
    communication: dict[str, float] = collections.defaultdict(float)
    communication_seconds = hidden = 0.0
    pending: dict[str, list[float]] = {}  # name -> [its seconds, those of concurrent work]
    chains: dict[str, list[float]] = {}  # the same for chains of fusions
    for one, computation, times in program.executed():
        sent, alone = collective(one, program, target), 0.0
        if sent and sent.chain not in chains:
            alone = sent.sent / target.bandwidth()
            communication[sent.kind] += times * sent.sent
            communication_seconds += times * alone
            if one.opcode.endswith("-start"):
                pending[one.name] = [alone, 0.0]
            if sent.chain:
                chains[sent.chain] = [times * alone, 0.0]
        if one.opcode.endswith("-done") and one.operands[0] in pending:
            hidden += times * min(pending.pop(one.operands[0]))
        if sent is None or one.opcode == "fusion":
            seconds = _seconds(one, program, computation, target, kernels)
            operations[one.path or "other"] += times * seconds
            for overlap in pending.values():
                overlap[1] += seconds
            if sent and sent.chain:
                chains[sent.chain][1] += times * seconds
            else:
                hidden += times * min(seconds, alone)  # a fusion that computes while it sends
    hidden += sum(map(min, chains.values()))
    return Costs(dict(operations), dict(communication), communication_seconds, hidden)


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective: its kind, and the bytes sent by each device.

    chain: name of a chain of TPU fusions that together perform one collective, else "".
    """

    kind: str
    sent: float
    chain: str = ""


def collective(one: hlo.Instruction, program: hlo.Program, target: Slice) -> Collective | None:
    """The collective in an instruction or in its fusion; None if there is none."""
    inside = [(one, "")]
    if one.opcode == "fusion":
        called = one.called("calls")
        inside = [(i, name) for name in called for i in program.computations[name].values()]
    for i, name in inside:
        for kind in COLLECTIVES:
            if i.opcode in (kind, f"{kind}-start"):
                group = group_size(i.rest, target.count)
                if name.startswith("all-reduce-scatter"):  # TPU: keeps only a slice
                    return Collective("reduce-scatter", i.bytes * (group - 1) / group)
                chain = re.search(r'chain_id="(\w+)"', i.rest)
                return Collective(kind, _ring(kind, i, group), chain[1] if chain else "")
    return None


def _ring(kind: str, one: hlo.Instruction, group: int) -> float:
    """Bytes sent by each device in the ring algorithm."""
    share = (group - 1) / group
    if kind == "collective-permute":
        return one.bytes / 2 if one.opcode.endswith("-start") else one.bytes
    if kind == "all-gather" and one.opcode.endswith("-start"):  # its type includes the input
        return one.bytes / (1 + 1 / group) * share
    if kind == "reduce-scatter" and one.opcode.endswith("-start"):  # likewise
        return one.bytes / (1 + group) * (group - 1)
    return one.bytes * {"all-reduce": 2 * share, "reduce-scatter": group - 1}.get(kind, share)


def group_size(rest: str, devices: int) -> int:
    """Number of devices in each group of a collective with these attributes."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'([^']+)'", found[2]))
    return devices


def _seconds(
    one: hlo.Instruction,
    program: hlo.Program,
    computation: str,
    target: Slice,
    kernels: Mapping[str, float],
) -> float:
    """Seconds of an operation."""
    chip = target.chip
    if chip.platform == "tpu":
        if "tpu_custom_call" in one.rest and not one.cycles:
            name = kernel_name(one)
            if name not in kernels:
                raise UnknownCost(f"unknown number of cycles of the Pallas kernel {name!r}")
            return kernels[name] / chip.clock
        return one.cycles / chip.clock
    if one.opcode.endswith("-done"):
        return 0.0
    products = flops(one, program, computation)
    return max(products / chip.flops, traffic(one, program, computation) / chip.bandwidth)


def kernel_name(one: hlo.Instruction) -> str:
    """The name of a Pallas kernel."""
    found = re.search(r'kernel_name[=:]\s*\\?"([\w.\-]+)', one.rest)
    return found[1] if found else one.name.rpartition(".")[0] or one.name


def flops(one: hlo.Instruction, program: hlo.Program, computation: str) -> float:
    """FLOPs of the matrix products in an instruction and the computations it calls."""
    total = _product_flops(one, program.computations[computation])
    for called in one.called("calls"):
        inside = program.computations[called].values()
        total += sum(flops(i, program, called) for i in inside)
    return total


def _product_flops(one: hlo.Instruction, around: Mapping[str, hlo.Instruction]) -> float:
    """FLOPs of a dot, a convolution or a cuBLAS call; else 0."""
    gemm = one.opcode == "custom-call" and "__cublas" in one.rest
    operands = [around[name].shape for name in one.operands[:2] if name in around]
    if (one.opcode not in ("dot", "convolution") and not gemm) or len(operands) < 2:
        return 0.0
    if one.opcode == "convolution":
        labels = re.search(r"dim_labels=\w+_(\w+)->", one.rest)
        kernel = zip(hlo.dims_of(operands[1]), labels[1] if labels else "", strict=False)
        contracted = math.prod(n for n, label in kernel if label != "o")
    else:
        found = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][\[{]([\d",]*)', one.rest)
        axes = re.findall(r"\d+", found[1]) if found else []
        contracted = math.prod(hlo.dims_of(operands[0])[int(i)] for i in axes)
    return 2.0 * math.prod(hlo.dims_of(one.shape)) * contracted


SLICES = ("dynamic-slice", "slice", "gather")


def traffic(one: hlo.Instruction, program: hlo.Program, computation: str) -> float:
    """Bytes that an operation reads and writes; for operands it slices, only the slice."""
    around = program.computations[computation]
    made = one.bytes
    if "__cublas" in one.rest:  # its second output is a workspace
        made = hlo.size_of(one.shape.partition(", s8[")[0])
    read = [around[name].bytes if name in around else 0.0 for name in one.operands]
    for called in one.called("calls"):
        inside = program.computations[called]
        inputs = [i for i in inside.values() if i.opcode == "parameter"]
        inputs.sort(key=lambda i: int(i.operands[0]))
        for number, place in enumerate(inputs[: len(read)]):
            users = [i for i in inside.values() if place.name in i.operands]
            if users and all(i.opcode in SLICES and i.operands[0] == place.name for i in users):
                read[number] = sum(i.bytes for i in users)
        updates = [i for i in inside.values() if i.opcode == "dynamic-update-slice"]
        if len(updates) == 1 and updates[0].bytes == made:  # in place
            made = inside[updates[0].operands[1]].bytes
            read = [size for size in read if size != updates[0].bytes]
    return made + sum(read)
