"""The accelerators that runs are planned for: what their makers say of them, and their slices.

Memory and rates are of the data sheets (Google Cloud's TPU pages, NVIDIA's product pages); the
speed of a link, one way, is that of "How to Scale Your Model" (jax-ml.github.io/scaling-book).
"""

import dataclasses
import math
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, as one JAX device.

    flops: bf16 matrix products per second. memory: bytes. bandwidth: of it, bytes per second.
    link: bytes per second, one way, of one link; a TPU has two along each axis of its slice.
    kind: JAX's `device_kind`. clock: cycles per second that fit the TPU compiler's estimates.
    wraps: a slice's axis is a ring where it is a multiple of this; 0: no slices (GPUs).
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
        """JAX's name of it: tpu or cuda."""
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
"""Planned for under these names; v4 only trains here: its compiler reports half chips."""


def peak_flops(kind: str) -> float | None:
    """bf16 matrix products per second of a device of this `device_kind`; None: not known."""
    return next((chip.flops for chip in CHIPS.values() if chip.kind == kind), None)


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips that are joined: `shape` is (4, 4) for v5e:4x4, (8,) for eight GPUs."""

    name: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        """What each of them is."""
        return CHIPS[self.name]

    @property
    def count(self) -> int:
        """How many they are."""
        return math.prod(self.shape)

    def bandwidth(self) -> float:
        """Bytes per second that a chip sends while all take part in a collective.

        On a TPU both directions of every axis are used where the axis is a ring, else one.
        """
        chip, axes = self.chip, [n for n in self.shape if n > 1]
        if not chip.wraps:
            return chip.link
        return chip.link * sum(2 if n % chip.wraps == 0 else 1 for n in axes)


def parse(topology: str) -> Slice:
    """Read "v5e:4x4" or "h100:8"; raises ValueError that says what is known."""
    name, _, shape = topology.partition(":")
    if name not in CHIPS or (not CHIPS[name].clock and CHIPS[name].wraps):
        known = [n for n, chip in CHIPS.items() if chip.clock or not chip.wraps]
        raise ValueError(f"{topology!r}: there is no chip {name!r} here, only {', '.join(known)}")
    sizes = shape.split("x")
    axes = 1 if not CHIPS[name].wraps else 3 if CHIPS[name].wraps == 4 else 2
    if len(sizes) != axes or not all(re.fullmatch("[1-9][0-9]{0,3}", size) for size in sizes):
        example = "x".join("8" if axes == 1 else "4" for _ in range(axes))
        raise ValueError(f"{topology!r}: a slice of {name} is given as {name}:{example}")
    return Slice(name, tuple(map(int, sizes)))
