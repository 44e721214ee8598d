"""What lies in the package's folders: tests run over these, so each new file is tested."""

import collections
import dataclasses
import functools
import importlib
import inspect
import pkgutil

import pytest

from vitdiff_jax import samplers
from vitdiff_jax.diffusion import grids, schedules, times


def functions(module):
    """{name: function} of the public functions that a module defines itself."""
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }


def modules(package, entry):
    """{name: module} of the modules in a package's folder that have this entry point."""
    names = [info.name for info in pkgutil.iter_modules(package.__path__)]
    found = {name: importlib.import_module(f"{package.__name__}.{name}") for name in names}
    return {name: module for name, module in found.items() if hasattr(module, entry)}


def entries(package, entry):
    """{module: entry point}, likewise."""
    return {name: getattr(module, entry) for name, module in modules(package, entry).items()}


def complete(sample):
    """A sampler that needs no more than a denoiser: a learned variance is the smallest."""
    if "variance" in inspect.signature(sample).parameters:
        return functools.partial(sample, variance=lambda x_t, t: 0 * x_t)
    return sample


def only(quick, cases):
    """Cases (tuples) for `parametrize`, of which those that are not in `quick` are slow."""
    quick = [*quick]
    return [pytest.param(*c, marks=[] if c in quick else pytest.mark.slow) for c in cases]


def quick(values, of):
    """The same for one argument."""
    return only([(value,) for value in values], [(value,) for value in of])


def covering(cases):
    """Cases (tuples) for `parametrize`: so many as have each value once are quick.

    Next comes the case with the most values that are new, and of these the one least used so far.
    """
    cases, uses, chosen = [*cases], collections.Counter(), []

    def places(case):
        return [(i, repr(value)) for i, value in enumerate(case)]

    def gain(case):
        used = [uses[place] for place in places(case)]
        return used.count(0), -sum(used)

    while gain(best := max(cases, key=gain))[0]:
        chosen.append(best)
        uses.update(places(best))
    return only(chosen, cases)


SCHEDULES = [  # every one with its defaults, and two whose scales are not 1 or the default
    *(kind() for kind in vars(schedules).values() if dataclasses.is_dataclass(kind)),
    schedules.RectifiedFlow(noise_scale=2.0),
    schedules.EDM(sigma_data=1.5),
]
GRIDS = functions(grids)
TIMES = functions(times)
SAMPLERS = {
    name: complete(sample)
    for name, sample in entries(samplers, "sample").items()
    if "denoise_to" not in inspect.signature(sample).parameters
}
"""Those of any model: that of average velocities has tests/diffusion/test_average_velocity.py."""
