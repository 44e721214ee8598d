"""What lies in the package's folders: tests run over these, so each new file is tested."""

import dataclasses
import importlib
import inspect
import pkgutil

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


def entries(package, entry):
    """{module: entry point} of the modules in a package's folder that have this entry point."""
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        if hasattr(module, entry):
            found[info.name] = getattr(module, entry)
    return found


SCHEDULES = [  # every one with its defaults, and two whose scales are not 1 or the default
    *(kind() for kind in vars(schedules).values() if dataclasses.is_dataclass(kind)),
    schedules.RectifiedFlow(noise_scale=2.0),
    schedules.EDM(sigma_data=1.5),
]
GRIDS = functions(grids)
LAWS = functions(times)
SAMPLERS = entries(samplers, "sample")
