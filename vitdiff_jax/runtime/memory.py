"""Memory: what is free, and what the arrays of a function take at once."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vitdiff_jax.runtime import flops

GROUP = pathlib.Path("/sys/fs/cgroup")
"""The limit of a container, where there is one."""
INFO = pathlib.Path("/proc/meminfo")


def free(device: Any) -> int | None:
    """Bytes that can be taken on a device, for CPUs in this machine or container; None: unknown."""
    if device.platform != "cpu":
        known = device.memory_stats() or {}
        if "bytes_limit" not in known:
            return None
        return known["bytes_limit"] - known.get("bytes_in_use", 0)
    try:
        lines = dict(line.split(":") for line in INFO.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 2**10
    except (OSError, KeyError, ValueError):  # not Linux
        return None
    try:
        limit, used = (int((GROUP / f"memory.{end}").read_text()) for end in ("max", "current"))
    except (OSError, ValueError):  # no group, or no limit: "max"
        return available
    return min(available, limit - used + _cached())


def _cached() -> int:
    """Bytes of files in memory, which count as a container's and are given up for others."""
    try:
        lines = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
        return int(lines["active_file"]) + int(lines["inactive_file"])
    except (OSError, KeyError, ValueError):
        return 0


def text(size: float) -> str:
    """Bytes as text: 585 MiB, 4.2 GiB."""
    return f"{size / 2**20:.0f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"


def of_arrays(function: Callable, *arguments: Any) -> int:
    """Bytes of the results of operations that are alive at once in function(*arguments), at most.

    arguments: may be shapes; they do not count. An estimate before compilation, on the safe side:
    compilers fuse operations whose results then need no memory.
    """
    return _peak(jax.make_jaxpr(function)(*arguments).jaxpr)


def _peak(jaxpr: Any) -> int:
    last = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.invars if _is_array(v)}
    last |= {v: len(jaxpr.eqns) for v in jaxpr.outvars if _is_array(v)}
    alive: dict[Any, int] = {}
    most = 0
    for i, eqn in enumerate(jaxpr.eqns):
        inside = max(map(_peak, flops.inner(eqn.params)), default=0)
        results = {v: _size(v) for v in eqn.outvars if v in last}
        most = max(most, sum(alive.values()) + max(inside, sum(results.values())))
        alive |= results
        for v in {v for v in (*eqn.invars, *eqn.outvars) if _is_array(v) and last.get(v, i) == i}:
            alive.pop(v, None)
    return most


def _is_array(v: Any) -> bool:
    return not hasattr(v, "val")  # literals have values, and no hash


def _size(v: Any) -> int:
    aval = v.aval
    return int(np.prod(aval.shape)) * getattr(getattr(aval, "dtype", None), "itemsize", 0)
