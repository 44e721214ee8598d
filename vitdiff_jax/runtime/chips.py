"""Specifications of the accelerators that `--mode=plan` knows, and their slices.

Memory and throughput are from the data sheets (Google Cloud's TPU pages, NVIDIA's product pages),
the one-way bandwidth of a link from "How to Scale Your Model" (jax-ml.github.io/scaling-book).
"""

import dataclasses
import math
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, i.e. one JAX device.

    kind: JAX's `device_kind`. flops: peak bf16 FLOP/s. memory: bytes. bandwidth: of the memory, in
    bytes/s. link: one-way bytes/s of one link; a TPU has two links along each axis of its slice.
    clock: Hz, as fitted to the TPU compiler's cycle estimates. wraps: an axis of a slice is a ring
    if its size is a multiple of this; 0: no slices (GPUs).
    """

    kind: str
    flops: float
    memory: int
    bandwidth: float
    link: float
    clock: float = 0.0
    wraps: int = 0

    @property
    def platform(self) -> str:
        """JAX's platform name: tpu or cuda."""
        return "tpu" if self.wraps else "cuda"


CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1228e9, 45e9, wraps=4),
    "v5e": Chip("TPU v5 lite", 197e12, 16 * GIB, 819e9, 45e9, clock=1.5e9, wraps=16),
    "v5p": Chip("TPU v5", 459e12, 95 * GIB, 2765e9, 90e9, clock=1.75e9, wraps=4),
    "v6e": Chip("TPU v6 lite", 918e12, 32 * GIB, 1640e9, 90e9, clock=1.75e9, wraps=16),
    "a100": Chip("NVIDIA A100-SXM4-80GB", 312e12, 80 * 10**9, 2039e9, 300e9),
    "h100": Chip("NVIDIA H100 80GB HBM3", 989e12, 80 * 10**9, 3350e9, 450e9),
    "h200": Chip("NVIDIA H200", 989e12, 141 * 10**9, 4800e9, 450e9),
}
"""By their name in --topology; no plans for v4, whose compiler reports half chips."""


def peak_flops(kind: str) -> float | None:
    """Peak bf16 FLOP/s of a device of this `device_kind`; None if unknown."""
    return next((chip.flops for chip in CHIPS.values() if chip.kind == kind), None)


@dataclasses.dataclass(frozen=True)
class Slice:
    """Connected chips: `shape` is (4, 4) for v5e:4x4, (8,) for h100:8."""

    name: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        """The type of the chips."""
        return CHIPS[self.name]

    @property
    def topology(self) -> str:
        """The inverse of `parse`: "v5e:4x4"."""
        return f"{self.name}:{'x'.join(map(str, self.shape))}"

    @property
    def count(self) -> int:
        """The number of chips."""
        return math.prod(self.shape)

    def bandwidth(self) -> float:
        """Bytes/s that each chip sends in a collective over all of them.

        On a TPU, an axis that is a ring uses both directions, otherwise one.
        """
        chip, axes = self.chip, [n for n in self.shape if n > 1]
        if not chip.wraps:
            return chip.link
        return chip.link * sum(2 if n % chip.wraps == 0 else 1 for n in axes)


def parse(topology: str) -> Slice:
    """Parse "v5e:4x4" or "h100:8"; the ValueError lists what is known."""
    name, _, shape = topology.partition(":")
    if name not in CHIPS or (not CHIPS[name].clock and CHIPS[name].wraps):
        known = [n for n, chip in CHIPS.items() if chip.clock or not chip.wraps]
        raise ValueError(f"{topology!r}: unknown chip {name!r}; available: {', '.join(known)}")
    sizes = shape.split("x")
    axes = 1 if not CHIPS[name].wraps else 3 if CHIPS[name].wraps == 4 else 2
    if len(sizes) != axes or not all(re.fullmatch("[1-9][0-9]{0,3}", size) for size in sizes):
        example = "x".join("8" if axes == 1 else "4" for _ in range(axes))
        raise ValueError(f"{topology!r}: a slice of {name} is written as {name}:{example}")
    return Slice(name, tuple(map(int, sizes)))
