"""Cycles of the Pallas kernels in a program that was compiled for a TPU."""

from vitdiff_jax import hlo


def cycles_of(program: hlo.Program, topology: str) -> dict[str, float]:
    """{name of a kernel: its cycles}; there is no kernel yet."""
    return {}
