"""Restoration methods: DDRM, DDNM, DPS, PiGDM, ..., one file each.

Each file has

    restore(denoise, schedule, times, x, keys, *, operator, y, noise_std, **options) -> x
    nfe(steps, final=..., **options) -> int    number of function evaluations, see below
    TRAITS                                     requirements and properties, see `Traits`
    gradients(**options) -> int                per network call, where some options take several

nfe gives the network calls per image; final: whether the last of the steps is the final denoising
step to the data, see `samplers`.
denoise, schedule, times, x, keys: as for `samplers`; x is sigma(1) eps.
operator: the degradation, see `operators`. y [B, ...] = operator.forward(x) + noise.
noise_std: standard deviation of the noise in units of [-1, 1], one number for all images, 0 for
none; for complex y, of the real and of the imaginary part.
Every norm is per image, and image i depends on its own y and key alone.

No method samples the exact posterior of real images; the docstrings state the bias of each for
Gaussian images, where the posterior is known, and the tests check it.
"""

import dataclasses
import importlib
import pkgutil
from typing import Any

from vitdiff_jax.operators import Operator
from vitdiff_jax.operators.denoise import Identity
from vitdiff_jax.operators.mask import Mask
from vitdiff_jax.operators.svd import Decomposable


@dataclasses.dataclass(frozen=True)
class Traits:
    """What a method requires of an operator, and its properties.

    needs: "any" (differentiable) operator, "linear", with an "svd", or a "mask".
    gradient: differentiates the network, which takes about three times as long and far more memory.
    prior: samples the prior where the operator is zero, as well as a sampler does.
    consistent: reproduces a noiseless measurement.
    exact: samples the posterior of Gaussian images under linear operators, with enough steps and
        the options named in its docstring.
    hint: for models trained to restore, which are conditioned on the degraded image.
    """

    needs: str
    gradient: bool = False
    prior: bool = False
    consistent: bool = False
    exact: bool = False
    hint: bool = False

    def supports(self, operator: Operator) -> bool:
        """Whether the method supports this operator."""
        return {
            "any": True,
            "linear": operator.linear,
            "svd": operator.linear and isinstance(operator, Decomposable),
            "mask": isinstance(operator, Mask),
        }[self.needs]


def methods() -> dict[str, Any]:
    """{name: module} of all methods of this package."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    found = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    return {name: module for name, module in found.items() if hasattr(module, "restore")}


def module(name: str) -> Any:
    """The module of a method; a dotted name is outside the package. Raises ValueError."""
    if "." not in name:
        known = methods()
        if name not in known:
            raise ValueError(f"there is no method {name!r}, only {', '.join(known)}")
        return known[name]
    try:
        found = importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"cannot use {name!r}: {error}") from error
    for part in ("restore", "nfe", "TRAITS"):
        if not hasattr(found, part):
            raise ValueError(f"cannot use {name!r}: it has no {part}")
    return found


def find(name: str, operator: Operator) -> Any:
    """`module` of a method. Raises ValueError where it does not support the operator, too."""
    found = module(name)
    traits = found.TRAITS
    if not traits.supports(operator):
        wanted = {"linear": "a linear operator", "svd": "an operator with an SVD", "mask": "a mask"}
        known = methods().items()
        others = [n for n, m in known if m.TRAITS.supports(operator) and not m.TRAITS.hint]
        raise ValueError(
            f"{name} needs {wanted[traits.needs]}, which {type(operator).__name__} is not;"
            f" use one of {', '.join(others)}"
        )
    return found


def recommended(operator: Operator, hint: bool = False) -> str:
    """The default method, chosen by measurement (docs/restoration.md).

    hint: whether the model was trained to restore. With an SVD, Flower is best or close to it on
    digits and on colour photographs, with a fifth of PnP-Flow's network calls; against noise alone
    DDRM is. Otherwise PnP-Flow is best, unless the operator is ill-posed (Radon: PnP-Flow 16 dB,
    DPS 19, DiffPIR 25).
    """
    if hint:
        return "palette"
    if not operator.linear:
        return "dps"
    if isinstance(operator, Decomposable):
        return "ddrm" if isinstance(operator, Identity) else "flower"
    return "diffpir" if getattr(operator, "ill_posed", False) else "pnpflow"
