"""How fast sampling is on this machine, and what makes it so.

    python tests/benchmarks/sampling.py [--rounds 5]

The model is of DiT-S's size (12 blocks of width 384 on 64 tokens) with random parameters, guided,
four Euler steps. Each round times everything one after the other, so that whatever else the machine
does hits all of it; medians are printed. Compared are guidance in one call of a doubled batch and
in two calls. A script and not a test: a time is no yes or no.
"""

import argparse
import pathlib
import statistics
import sys
import time

import jax
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests import tiny  # noqa: E402 - needs the path above
from vitdiff_jax.experiment import build as experiment_lib  # noqa: E402
from vitdiff_jax.experiment import config as config_lib  # noqa: E402
from vitdiff_jax.inference import sampling  # noqa: E402
from vitdiff_jax.samplers import euler  # noqa: E402

SHAPE, CLASSES, STEPS = (32, 32, 3), 1000, 4
SIZE = dict(patch=4, width=384, depth=12, heads=6, bottleneck=128, class_tokens=0)


def built(**sample) -> experiment_lib.Experiment:
    """The model with these options of config.sample."""
    sample = dict(sampler=dict(name="euler"), steps=STEPS, guidance=2.0) | sample
    config = config_lib.complete({"model": SIZE, "sample": sample})
    return experiment_lib.build(config, SHAPE, {"label": [str(i) for i in range(CLASSES)]})


def sampler(known: experiment_lib.Experiment, count: int, *, apart: bool = False):
    """params -> float images, compiled for `count` of them."""
    denoise_of = sampling.guided(known, known.config.sample, batched=not apart)
    cond = {"label": np.arange(count, dtype=np.int32) % CLASSES}
    schedule, times = known.process.schedule, np.linspace(1, 0, STEPS + 1)

    @jax.jit
    def sample(params):
        x, keys = sampling.initial_noise(schedule, np.arange(count, dtype=np.uint32), SHAPE)
        return euler.sample(denoise_of((params, None), cond), schedule, times, x, keys)

    return sample


def medians(runs, rounds: int):
    """{name: median seconds} of functions of nothing, in turn; each is run once before."""
    seconds = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


def guidance(rounds: int) -> None:
    """One call of a doubled batch against two calls."""
    params = tiny.random_params(built(), scale=0.05)
    for count in (1, 8, 64):
        runs, compiling = {}, {}
        for low, high in ((0.0, 1.0), (0.0, 0.5)):
            known = built(guidance_low=low, guidance_high=high)
            for name, apart in (("doubled", False), ("two calls", True)):
                program = sampler(known, count, apart=apart)
                lowered, began = program.lower(params), time.perf_counter()
                compiled = lowered.compile()
                name = f"t in [{low}, {high}], {name}"
                compiling[name] = time.perf_counter() - began
                runs[name] = lambda c=compiled: c(params).block_until_ready()
        for name, seconds in medians(runs, rounds).items():
            rate = f"{count / seconds:7.2f} images/s"
            print(f"guided, {count:3} images, {name:28}{rate}, compiled in {compiling[name]:.1f} s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each kind")
    rounds = parser.parse_args().rounds
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, medians of {rounds} rounds")
    guidance(rounds)


if __name__ == "__main__":
    main()
