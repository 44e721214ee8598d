"""What a user's picture suffers from, as an operator and a measurement that models understand.

A task is a name of `TASKS`, a preset (`operators.presets`), or the text of an operator, see
`operators.spelling`: "deblur", "deblur:std=1.5", "dps/box", "downsample:factor=2+colourise".
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from vitdiff_jax import operators
from vitdiff_jax.experiment.build import named
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.operators import Operator, Shape, spelling
from vitdiff_jax.operators.compose import Composed
from vitdiff_jax.operators.inverse import as_image
from vitdiff_jax.operators.mask import Mask
from vitdiff_jax.operators.presets import PRESETS

TASKS = {  # what a user calls it -> the operator that did it; a mask of the user's comes after it
    "inpaint": "denoise",
    "denoise": "denoise",
    "upscale": "downsample:factor=4,kind=bicubic",
    "deblur": "blur:kind=gaussian,size=13,std=2.0",
    "colourise": "colourise",
    "old-photo": "colourise",
    "artefacts": "jpeg:quality=20",
}
BLIND = 2 / 255
"""A noise level below it is taken for none: it is that of rounding to grey levels."""


def spec_of(task: str) -> dict[str, Any]:
    """The operator of a task of `TASKS`, of a preset, or of an operator's own text, as options."""
    spec = spelling.parse(task)
    if spec["name"] not in TASKS:
        return spec
    return spelling.parse(TASKS[spec.pop("name")]) | spec


def operator_of(
    task: str, shape: Shape, rng: np.random.Generator, missing: np.ndarray | None = None
) -> Operator:
    """The operator of a task for images of this shape; ConfigError where there is none.

    missing: bool [H, W] of the degraded picture, what is lost after all else.
    """
    with named("task: "):
        spec = spec_of(task)
        name = spec.pop("name")
        operator = operators.make(name, shape, rng, **spec)
        if missing is None:
            return operator
        degraded = _measured(operator, shape)
        if degraded[:2] != missing.shape:
            raise ValueError(
                f"the mask has {missing.shape[1]}x{missing.shape[0]} pixels, the degraded picture"
                f" {degraded[1]}x{degraded[0]}"
            )
        mask = Mask((~missing).astype(np.float32)[..., None], degraded[2])
        return mask if name == "denoise" else Composed((operator, mask), operator.linear)


def _measured(operator: Operator, shape: Shape) -> tuple[int, ...]:
    """The shape of what is measured of an image."""
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(operator.forward, image).shape[1:]


def noise_of(y: np.ndarray, missing: np.ndarray | None = None) -> float:
    """The noise's standard deviation in a degraded picture [H, W, C], 0 below `BLIND`.

    From the finest wavelets (Donoho and Johnstone, 1994), by scikit-image. missing: bool [H, W],
    pixels that say nothing; the nearest known ones stand in.
    """
    from skimage.restoration import estimate_sigma  # a second to import

    if missing is not None and missing.any():
        places: Any = ndimage.distance_transform_edt(
            missing, return_distances=False, return_indices=True
        )
        y = y[tuple(places)]
    found = float(np.mean(estimate_sigma(y, channel_axis=-1)))
    return found if found > BLIND else 0.0


@dataclasses.dataclass(frozen=True)
class Case:
    """Degraded images of one shape [H, W, C], or one picture as such images.

    y [N, ...]: their measurements. channels: of the picture that is to come out.
    """

    task: str
    operator: Operator
    y: np.ndarray
    noise_std: float
    shape: Shape
    channels: int

    @property
    def images(self) -> np.ndarray:
        """What is seen of them, [N, H, W, C]."""
        return np.asarray(as_image(self.operator, jnp.asarray(self.y), self.shape))

    @property
    def picture(self) -> np.ndarray:
        """The same as one picture [H, W, channels]."""
        return one_picture(self.images, self.channels)


def as_given(
    x: np.ndarray, channels: int, task: str, missing: np.ndarray | None = None,
    noise_std: float | None = None, seed: int = 0,
) -> Case:  # fmt: skip
    """A degraded picture [H, W, 1 or 3] in [-1, 1], for a model of so many channels.

    missing: bool [H, W], pixels that are lost. noise_std: in units of [-1, 1]; None: estimated.
    seed: of the operator, where it is drawn.
    """
    with named("task: "):
        spec = spec_of(task)
    factor = int(np.prod([p.get("factor", 1) for p in spec.get("parts", [spec])]))
    shape = (x.shape[0] * factor, x.shape[1] * factor, channels)
    operator = operator_of(task, shape, np.random.default_rng(seed), missing)
    measured = _measured(operator, shape)
    coloured = measured[-1] == 1 < channels  # what is left of the colours counts as grey
    y = x.mean(-1, keepdims=True)[None] if coloured else planes_of(x, channels)
    if measured != y.shape[1:]:
        raise ConfigError(
            f"task: {task} gives {measured}, not a picture of {x.shape} (height, width, channels);"
            " --degrade degrades a whole picture first"
        )
    if noise_std is None:
        noise_std = noise_of(x, missing)
    if missing is not None:
        y = np.where(missing[..., None], 0, y)
    return Case(task, operator, y, noise_std, shape, channels if coloured else x.shape[2])


def degraded(
    x: np.ndarray, task: str, missing: np.ndarray | None, noise_std: float | None,
    seeds: np.ndarray, channels: int | None = None,
) -> Case:  # fmt: skip
    """Whole images [N, H, W, C], degraded by one operator, drawn with the first of the seeds [N].

    missing: as in `as_given`. noise_std None: the preset's, or none. channels: of the picture that
    the images make; None: their own.
    """
    shape = x.shape[1:]
    operator = operator_of(task, shape, np.random.default_rng(int(seeds[0])), missing)
    if noise_std is None:
        preset = PRESETS.get(task.partition(":")[0])
        noise_std = preset.noise_std if preset else 0.0
    y = degrade(operator, x, noise_std, seeds)
    return Case(task, operator, y, noise_std, shape, channels or shape[2])


def degrade(operator: Operator, x: np.ndarray, noise_std: float, seeds: np.ndarray) -> np.ndarray:
    """operator.forward(x) + noise, image i's from seeds[i]; for complex y in both parts.

    Where nothing is measured, such as below a mask, there is no noise either: methods that look at
    |y - A x| would take it for a misfit.
    """
    y = np.asarray(operator.forward(jnp.asarray(x)))
    probe = np.random.default_rng(0).standard_normal((1, *x.shape[1:])).astype(np.float32)
    there = np.asarray(operator.forward(jnp.asarray(probe))) != 0

    def noise(seed):
        draws = np.random.default_rng([int(seed), 1]).standard_normal((2, *y.shape[1:]))
        return draws[0] + 1j * draws[1] if np.iscomplexobj(y) else draws[0]

    noises = there * np.stack([noise(seed) for seed in seeds])
    return (y + noise_std * noises).astype(y.dtype)


def planes_of(x: np.ndarray, channels: int) -> np.ndarray:
    """A picture [H, W, C] as images [P, H, W, channels]."""
    if x.shape[2] == channels:
        return x[None]
    if channels == 1:  # each colour by itself
        return np.moveaxis(x, 2, 0)[..., None]
    return np.repeat(x, channels, 2)[None]


def one_picture(planes: np.ndarray, channels: int) -> np.ndarray:
    """Images [P, H, W, C] of `planes_of` as one picture [H, W, channels]."""
    if len(planes) == channels > 1:
        return np.moveaxis(planes[..., 0], 0, 2)
    return planes[0] if planes.shape[3] == channels else planes[0].mean(-1, keepdims=True)
