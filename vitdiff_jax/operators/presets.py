"""Degradations of published benchmarks by name, with their noise in units of [-1, 1].

DPS and DAPS state noise in [-1, 1]; DDRM, DDNM and DiffPIR in [0, 1], which is doubled here. Sizes
in pixels are for 256x256 images, as in the papers.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Preset:
    """operator: the name of an operator and its options. noise_std: in units of [-1, 1]."""

    operator: dict[str, Any]
    noise_std: float


def _all(noise_std: float, **operators: dict[str, Any]) -> dict[str, Preset]:
    return {name: Preset(operator, noise_std) for name, operator in operators.items()}


_BICUBIC = dict(name="downsample", factor=4, kind="bicubic")
_AVERAGE = dict(name="downsample", factor=4, kind="average")
_BLUR = dict(name="blur", kind="gaussian", size=61, std=3.0)
_MOTION = dict(name="blur", kind="motion", size=61, intensity=0.5)


def _random(share: float) -> dict[str, Any]:
    return dict(name="mask", kind="random", share=share)


def _box(side: float, margin: float) -> dict[str, Any]:
    return dict(name="mask", kind="box", side=side, margin=margin)


FAMILIES = {
    "dps": _all(  # arXiv:2209.14687
        0.05, box=_box(1 / 2, 1 / 16), random=_random(0.92), sr4=_BICUBIC, blur=_BLUR,
        motion=_MOTION,
    ),
    "daps": _all(  # arXiv:2407.01521
        0.05, box=_box(1 / 2, 1 / 8), random=_random(0.7), sr4=_BICUBIC, blur=_BLUR,
        motion=_MOTION, hdr=dict(name="hdr", gain=2.0),
    ),
    "ddrm": _all(  # arXiv:2201.11793: 0.05 in [0, 1]
        0.1, sr4=_AVERAGE, colourise=dict(name="colourise"), denoise=dict(name="denoise"),
        uniform=dict(name="blur", kind="uniform", size=9),
        gaussian=dict(name="blur", kind="gaussian", size=5, std=10.0),
    ),
    "pnpflow": {  # arXiv:2410.02423; its sizes for 256 px
        **_all(0.2, denoise=dict(name="denoise")),
        **_all(
            0.05, box=_box(80 / 256, 0.25), sr4=_AVERAGE,
            blur=dict(name="blur", kind="gaussian", size=61, std=3.0),
        ),
        **_all(0.01, random=_random(0.7)),
    },
}  # fmt: skip
PRESETS = {
    f"{family}/{name}": preset
    for family, presets in FAMILIES.items()
    for name, preset in presets.items()
}
