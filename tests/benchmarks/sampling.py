"""How fast sampling is on this machine, and what makes it so.

    python tests/benchmarks/sampling.py [--rounds 5]

The model is of DiT-S's size (12 blocks of width 384 on 64 tokens) with random parameters, guided,
four Euler steps. Each round times everything one after the other, so that whatever else the machine
does hits all of it; medians are printed. Compared are guidance in one call of a doubled batch and
in two calls; float32 and bfloat16, also by what comes out; and a folder of PNG files written while
the next images are drawn, and in between. A script and not a test: a time is no yes or no.
"""

import argparse
import functools
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vitdiff_jax.experiment import build as experiment_lib  # noqa: E402
from vitdiff_jax.experiment import config as config_lib  # noqa: E402 - needs the path above
from vitdiff_jax.inference import sampling  # noqa: E402
from vitdiff_jax.interop import images as image_lib  # noqa: E402
from vitdiff_jax.samplers import euler  # noqa: E402

SHAPE, CLASSES, STEPS = (32, 32, 3), 1000, 4
SIZE = dict(patch=4, width=384, depth=12, heads=6, bottleneck=128, class_tokens=0)


def built(dtype: str = "float32", **sample) -> experiment_lib.Experiment:
    """The model with these options of config.sample."""
    sample = dict(sampler=dict(name="euler"), steps=STEPS, guidance=2.0) | sample
    config = config_lib.complete({"model": SIZE | {"dtype": dtype}, "sample": sample})
    return experiment_lib.build(config, SHAPE, {"label": [str(i) for i in range(CLASSES)]})


def random_params(known: experiment_lib.Experiment):
    """Not the initial ones, whose output is 0 whatever the input."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.05 * random.standard_normal(leaf.shape), leaf.dtype),
        known.param_shapes(),
    )


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
    params = random_params(built())
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


def types(rounds: int) -> None:
    """float32 against bfloat16, and bfloat16 with matrices that were cast before the loop."""
    params, count = random_params(built()), 8
    cast = jax.tree.map(lambda a: a.astype(jnp.bfloat16) if a.ndim > 1 else a, params)
    programs = {"float32": sampler(built(), count), "bfloat16": sampler(built("bfloat16"), count)}
    runs = {
        name: functools.partial(lambda f, p: f(p).block_until_ready(), f, params)
        for name, f in programs.items()
    }
    runs["bfloat16, cast before"] = lambda: programs["bfloat16"](cast).block_until_ready()
    for name, seconds in medians(runs, rounds).items():
        print(f"{name:24}{count / seconds:7.2f} images/s")
    wanted, found = (np.asarray(program(params)) for program in programs.values())
    away = abs(found - wanted)
    print(f"they differ by {away.mean():.5f}, at most {away.max():.4f}; images: {wanted.std():.2f}")


def files(rounds: int) -> None:
    """Four batches of 8 images, each taken and written 16 times the size, as one picture each."""
    params, batches, home = random_params(built()), 4, pathlib.Path(tempfile.mkdtemp())
    program = sampler(built(), 8)

    def write(images):
        pixels = np.asarray(image_lib.to_uint8(np.asarray(images)))
        for i, image in enumerate(pixels.repeat(16, 1).repeat(16, 2)):  # [8, 512, 512, 3]
            image_lib.save_png(home / f"{i}.png", image)

    def ahead():
        for images in sampling.dispatch_ahead(lambda _: program(params), range(batches)):
            write(images)

    def in_turn():
        for _ in range(batches):
            write(program(params))

    for name, seconds in medians({"ahead": ahead, "in turn": in_turn}, rounds).items():
        print(f"drawn and written {name:14}{8 * batches / seconds:7.2f} images/s")
    shutil.rmtree(home)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each kind")
    rounds = parser.parse_args().rounds
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, medians of {rounds} rounds")
    guidance(rounds)
    types(rounds)
    files(rounds)


if __name__ == "__main__":
    main()
