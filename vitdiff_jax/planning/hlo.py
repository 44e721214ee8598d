"""Parser for compiled programs: XLA's scheduled HLO text, as from `compiled.as_text()`."""

import dataclasses
import math
import re
from collections.abc import Iterator

BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2,
    "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
FREE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "iota"}
"""Opcodes that take no time."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a computation."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str

    @property
    def bytes(self) -> float:
        """Size of the output."""
        return size_of(self.shape)

    @property
    def cycles(self) -> float:
        """The TPU compiler's estimate; 0 if there is none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return float(found[1]) if found else 0.0

    @property
    def path(self) -> str:
        """The module of the model it comes from: "block_3/attention"; "" if unknown."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return model_path(found[1]) if found else ""

    def called(self, *roles: str) -> list[str]:
        """The computations it calls in the roles `body`, `condition`, `branch_computations`, ..."""
        names = []
        for role in roles:
            for found in re.finditer(rf"\b{role}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.rest):
                names += re.findall(r"[\w.\-]+", found[1])
        return names


def size_of(shape: str) -> float:
    """Bytes of an HLO type, such as "(f32[2,3]{1,0}, bf16[4])"."""
    total = 0.0
    for kind, dims in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape):
        total += BYTES.get(kind, 0) * math.prod(int(d) for d in dims.split(",") if d)
    return total


def dims_of(shape: str) -> tuple[int, ...]:
    """The dimensions of the first array of an HLO type."""
    found = re.search(r"\[([\d,]*)\]", shape)
    return tuple(int(d) for d in found[1].split(",") if d) if found else ()


def model_path(op_name: str) -> str:
    """jit(train_step)/transpose(jvp(Model))/block_1/mod/dot_general -> block_1/mod (backward)."""
    names = [part for part in op_name.split("/")[:-1] if re.fullmatch(r"[\w.\-]+", part)]
    inner = ("Model.", "branch_", "closed_call", "shard_map")
    names = [name for name in names if not name.startswith(inner)]
    return "/".join(names) + (" (backward)" if names and "transpose(" in op_name else "")


class Program:
    """The computations of a program, by name."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = name = ""
        lines: list[str] | None = None  # of the current computation
        for line in text.splitlines():
            header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
            if line == "}" and lines is not None:  # other braces may be in metadata
                self.computations[name] = {i.name: i for i in map(_instruction, lines) if i}
                lines = None
            elif lines is None and header:
                name, lines = header[2], []
                self.entry = name if header[1] else self.entry
            elif lines is not None and re.match(r"\s+(ROOT )?%?[\w.\-]+ = ", line):
                lines.append(line)
            elif lines:  # metadata continued
                lines[-1] += line

    def executed(self, computation: str = "") -> Iterator[tuple[Instruction, str, int]]:
        """(instruction, its computation, count) for all instructions that take time, in order.

        Of the branches of a conditional: the one with most cycles, else with most instructions.
        """
        computation = computation or self.entry
        for one in self.computations[computation].values():
            times = self.trips(one) if one.opcode == "while" else 1
            if one.opcode == "conditional":
                roles = ("branch_computations", "true_computation", "false_computation")
                inside = max(
                    (list(self.executed(name)) for name in one.called(*roles)), key=_weight
                )
            elif one.opcode in ("while", "call", "async-start"):
                roles = ("body",) if one.opcode == "while" else ("to_apply", "calls")
                inside = [found for name in one.called(*roles) for found in self.executed(name)]
            elif one.opcode in FREE:
                continue
            else:
                inside = [(one, computation, 1)]
            for found, where, count in inside:
                yield found, where, count * times

    def trips(self, loop: Instruction) -> int:
        """Trip count of a loop: as known to XLA, else the largest constant in its condition."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
        if known:
            return int(known[1])
        (condition,) = loop.called("condition")
        constants = [0]
        waiting = [condition]
        while waiting:
            for one in self.computations[waiting.pop()].values():
                waiting += one.called("calls", "to_apply")
                if one.opcode == "constant" and re.fullmatch(r"\d+", one.operands[0]):
                    constants.append(int(one.operands[0]))
        return max(constants)


def _weight(executed: list[tuple[Instruction, str, int]]) -> tuple[float, int]:
    """Sort key of the longest branch."""
    return sum(times * one.cycles for one, _, times in executed), len(executed)


def _instruction(line: str) -> Instruction | None:
    """Parse "  %name = shape opcode(operands), rest"; None if it is not an instruction."""
    found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", line)
    if not found:
        return None
    name, text = found[1], found[2]
    end = _closing(text, 0) if text.startswith("(") else text.find(" ")
    shape, text = text[:end], text[end:].lstrip()
    start = text.find("(")
    if start < 1 or not re.fullmatch(r"[\w\-]+", text[:start]):
        return None
    end = _closing(text, start)
    inside = text[start + 1 : end - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside)) or (inside,)
    return Instruction(name, shape, text[:start], operands, text[end:])


def _closing(text: str, start: int) -> int:
    """The index just past the parenthesis that closes the one at `start`."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return start + found.end()
    return len(text)
