"""What a compiled program costs on a chip: seconds of its operations, and messages between chips.

TPUs: the compiler's own estimate of each operation's cycles. GPUs: there is none, so a roofline:
what an operation's matrix products take at the chip's peak, or its bytes at the peak of its memory,
whichever is longer. That is a lower bound, and is called so wherever it is shown.
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
    """An operation of which nobody can say how long it takes; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one run of a program, on each device.

    operations: seconds by where they come from, in the model's own names, of all but messages.
    messages: bytes that are sent, by kind of collective. message_seconds: what they take on the
    links of the slice, each alone; hidden: of that, what passes while operations run.
    """

    operations: Mapping[str, float]
    messages: Mapping[str, float]
    message_seconds: float
    hidden: float

    @property
    def seconds(self) -> float:
        """Of the whole: operations, and the messages that nothing hides."""
        return sum(self.operations.values()) + self.message_seconds - self.hidden


def of(program: hlo.Program, where: Slice, kernels: Mapping[str, float]) -> Costs:
    """The costs of a program that was compiled for these chips.

    kernels: cycles of each Pallas kernel by its name; the compiler does not say.
    """
    operations: dict[str, float] = collections.defaultdict(float)
    messages: dict[str, float] = collections.defaultdict(float)
    message_seconds = hidden = 0.0
    under_way: dict[str, list[float]] = {}  # a message's name -> [its seconds, of work beside it]
    chains: dict[str, list[float]] = {}  # the same of those that several fusions carry
    for one, computation, times in program.executed():
        sent, alone = message(one, program, where), 0.0
        if sent and sent.chain not in chains:
            alone = sent.sent / where.bandwidth()
            messages[sent.kind] += times * sent.sent
            message_seconds += times * alone
            if one.opcode.endswith("-start"):
                under_way[one.name] = [alone, 0.0]
            if sent.chain:
                chains[sent.chain] = [times * alone, 0.0]
        if one.opcode.endswith("-done") and one.operands[0] in under_way:
            hidden += times * min(under_way.pop(one.operands[0]))
        if sent is None or one.opcode == "fusion":
            seconds = _seconds(one, program, computation, where, kernels)
            operations[one.path or "other"] += times * seconds
            for beside in under_way.values():
                beside[1] += seconds
            if sent and sent.chain:
                chains[sent.chain][1] += times * seconds
            else:
                hidden += times * min(seconds, alone)  # of a fusion that works while it sends
    hidden += sum(map(min, chains.values()))
    return Costs(dict(operations), dict(messages), message_seconds, hidden)


@dataclasses.dataclass(frozen=True)
class Message:
    """What a collective sends: which kind it is, and the bytes that leave each device.

    chain: of the TPU compiler's fusions that carry one message between them, else "".
    """

    kind: str
    sent: float
    chain: str = ""


def message(one: hlo.Instruction, program: hlo.Program, where: Slice) -> Message | None:
    """The message that an instruction sends, itself or within its fusion; None: none."""
    inside = [(one, "")]
    if one.opcode == "fusion":
        called = one.called("calls")
        inside = [(i, name) for name in called for i in program.computations[name].values()]
    for i, name in inside:
        for kind in COLLECTIVES:
            if i.opcode in (kind, f"{kind}-start"):
                among = group_size(i.rest, where.count)
                if name.startswith("all-reduce-scatter"):  # the TPU's, of which a slice is kept
                    return Message("reduce-scatter", i.bytes * (among - 1) / among)
                chain = re.search(r'chain_id="(\w+)"', i.rest)
                return Message(kind, _ring(kind, i, among), chain[1] if chain else "")
    return None


def _ring(kind: str, one: hlo.Instruction, among: int) -> float:
    """Bytes that each device sends, by the ring algorithm."""
    share = (among - 1) / among
    if kind == "collective-permute":
        return one.bytes / 2 if one.opcode.endswith("-start") else one.bytes
    if kind == "all-gather" and one.opcode.endswith("-start"):  # its type has the input too
        return one.bytes / (1 + 1 / among) * share
    if kind == "reduce-scatter" and one.opcode.endswith("-start"):  # so has this
        return one.bytes / (1 + among) * (among - 1)
    return one.bytes * {"all-reduce": 2 * share, "reduce-scatter": among - 1}.get(kind, share)


def group_size(rest: str, devices: int) -> int:
    """How many devices take part in each group of a collective with these attributes."""
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
    where: Slice,
    kernels: Mapping[str, float],
) -> float:
    """What an operation takes."""
    chip = where.chip
    if chip.platform == "tpu":
        if "tpu_custom_call" in one.rest and not one.cycles:
            name = kernel_name(one)
            if name not in kernels:
                raise UnknownCost(f"the Pallas kernel {name!r} has no known number of cycles")
            return kernels[name] / chip.clock
        return one.cycles / chip.clock
    if one.opcode.endswith("-done"):
        return 0.0
    products = flops(one, program, computation)
    return max(products / chip.flops, traffic(one, program, computation) / chip.bandwidth)


def kernel_name(one: hlo.Instruction) -> str:
    """The name that a Pallas kernel was given."""
    found = re.search(r'kernel_name[=:]\s*\\?"([\w.\-]+)', one.rest)
    return found[1] if found else one.name.rpartition(".")[0] or one.name


def flops(one: hlo.Instruction, program: hlo.Program, computation: str) -> float:
    """Of the matrix products in an instruction and what it calls, two for each multiply-add."""
    total = _product_flops(one, program.computations[computation])
    for called in one.called("calls"):
        inside = program.computations[called].values()
        total += sum(flops(i, program, called) for i in inside)
    return total


def _product_flops(one: hlo.Instruction, around: Mapping[str, hlo.Instruction]) -> float:
    """Of a dot, a convolution or a call of cuBLAS; else 0."""
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
    """Bytes that an operation reads and writes; of what it only takes a slice of, the slice."""
    around = program.computations[computation]
    made = one.bytes
    if "__cublas" in one.rest:  # the second output is cuBLAS's workspace
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
