"""Programs that are measured in turn, so that whatever else the machine does hits all of them.

JAX and PyTorch live in a process each, as in real training. In one process they spoil each other's
memory: once PyTorch had run, our training step spent 4 s of CPU time in the kernel instead of 0.9
(2 cores, glibc 2.36; half of that went away with malloc's mmap threshold fixed at 128 KiB).
"""

import multiprocessing
import os
import pathlib
import sys
import time
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # as PyTorch here
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # as vitdiff_jax.main; for both
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
PAUSE = 0.3
"""Seconds between two measurements: PyTorch's threads spin for a while after their last work."""
Times = list[tuple[float, float]]
"""Seconds, and seconds of processor time, of each measurement."""


def serve(make, pipe) -> None:
    """In a process of its own: make() -> (what it is, {name: run}); time what the pipe names."""
    about, runs = make()
    for run in runs.values():  # compile
        run()
    pipe.send((about, list(runs)))
    for name in iter(pipe.recv, None):
        runs[name]()  # not timed, it wakes threads; in training, a step follows on a step
        start, busy = time.perf_counter(), time.process_time()
        runs[name]()
        pipe.send((time.perf_counter() - start, time.process_time() - busy))


def measure(sides: dict[str, Any], rounds: int, check=print) -> dict[tuple[Any, str], Times]:
    """{(run, side): times} of {side: make}, whose runs have the same names.

    check(about of the first side, of the second, ...) comes before anything is measured.
    """
    context, pipes, workers, about = multiprocessing.get_context("spawn"), {}, [], {}
    for side, make in sides.items():
        pipes[side], end = context.Pipe()
        workers.append(context.Process(target=serve, args=(make, end), daemon=True))
        workers[-1].start()
        end.close()  # so that a dead worker is an EOFError here, not silence
        about[side], names = pipes[side].recv()
    check(*about.values())
    times = {(name, side): [] for name in names for side in sides}
    for _ in range(rounds):
        for name, side in times:
            time.sleep(PAUSE)
            pipes[side].send(name)
            times[name, side].append(pipes[side].recv())
    for pipe, worker in zip(pipes.values(), workers, strict=True):
        pipe.send(None)
        worker.join()
    return times
