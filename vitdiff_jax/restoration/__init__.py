"""Restoration methods: DDRM, DDNM, DPS, PiGDM, ..., one file each.

Each file has

    restore(denoise, schedule, times, x, keys, *, operator, y, noise_std, **options) -> x
    calls(steps, **options) -> int       network calls for one image
    TRAITS                               what it needs and what holds, see `Traits`

denoise, schedule, times, x, keys: as for `samplers`; x starts as sigma(1) eps.
operator: what degraded the images, see `operators`. y [B, ...] = operator.forward(x) + noise.
noise_std: of that noise in units of [-1, 1], one number for all, 0 for none; for complex y, of the
real and of the imaginary part.
Every norm is per image, and image i depends on its own y and key alone.

No method here samples the posterior exactly for real images; what each does to Gaussian ones, where
everything is known, is said in its docstring and tested.
"""

import dataclasses
import importlib
import pkgutil
from typing import Any

from vitdiff_jax.operators import Operator
from vitdiff_jax.operators.mask import Mask
from vitdiff_jax.operators.svd import Decomposable


@dataclasses.dataclass(frozen=True)
class Traits:
    """What a method needs of an operator, and what then holds.

    needs: "any" operator (with a derivative), a "linear" one, one with an "svd", or a "mask".
    gradient: through the network, which takes about three times the time and far more memory.
    prior: where the operator is zero, images of the prior come out, as good as a sampler's.
    consistent: a measurement without noise is reproduced.
    exact: samples the posterior for Gaussian images and a linear operator, with enough steps and
        the options that its docstring names.
    hint: for models that were trained to restore, and see the degraded image.
    """

    needs: str
    gradient: bool = False
    prior: bool = False
    consistent: bool = False
    exact: bool = False
    hint: bool = False

    def serves(self, operator: Operator) -> bool:
        """Whether the method can be used with this operator."""
        return {
            "any": True,
            "linear": operator.linear,
            "svd": operator.linear and isinstance(operator, Decomposable),
            "mask": isinstance(operator, Mask),
        }[self.needs]


def methods() -> dict[str, Any]:
    """{name: module} of all that are here."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    found = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    return {name: module for name, module in found.items() if hasattr(module, "restore")}


def module(name: str) -> Any:
    """A method's module; a dotted name is one outside the package. ValueError where it is none."""
    if "." not in name:
        known = methods()
        if name not in known:
            raise ValueError(f"there is no {name!r}, only {', '.join(known)}")
        return known[name]
    try:
        found = importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"cannot use {name!r}: {error}") from error
    for part in ("restore", "calls", "TRAITS"):
        if not hasattr(found, part):
            raise ValueError(f"cannot use {name!r}: it has no {part}")
    return found


def find(name: str, operator: Operator) -> Any:
    """`module` of a method; ValueError also where it cannot serve the operator."""
    found = module(name)
    traits = found.TRAITS
    if not traits.serves(operator):
        wanted = {"linear": "a linear operator", "svd": "an operator with an SVD", "mask": "a mask"}
        known = methods().items()
        others = [n for n, m in known if m.TRAITS.serves(operator) and not m.TRAITS.hint]
        raise ValueError(
            f"{name} needs {wanted[traits.needs]}, which {type(operator).__name__} is not;"
            f" {', '.join(others)} would do"
        )
    return found


def recommended(operator: Operator, hint: bool = False) -> str:
    """The method to use where nobody says which, chosen by measurement (docs/restoration.md).

    hint: the model was trained to restore. Where there is an SVD, DDRM is near the best by LPIPS on
    grey and on colour images, at a fifth of the network calls; elsewhere PnP-Flow is best, unless
    the operator is ill-posed (Radon: 16 dB, DPS 19, DiffPIR, which solves, 25).
    """
    if hint:
        return "palette"
    if not operator.linear:
        return "dps"
    if isinstance(operator, Decomposable):
        return "ddrm"
    return "diffpir" if getattr(operator, "ill_posed", False) else "pnpflow"
