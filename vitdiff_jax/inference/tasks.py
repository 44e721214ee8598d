"""Restoration tasks as inverse problems y = A x + n: a degradation operator and a measurement.

A task is a name in `TASKS`, a preset (`operators.presets`), or an operator spec, see
`operators.parsing`: "deblur", "deblur:std=1.5", "dps/box", "downsample:factor=2+colourise".
"""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from vitdiff_jax import operators
from vitdiff_jax.experiment.build import config_errors
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.operators import Operator, Shape, masks, parsing, scratches
from vitdiff_jax.operators.compose import Composed
from vitdiff_jax.operators.inverse import as_image
from vitdiff_jax.operators.mask import Mask
from vitdiff_jax.operators.presets import PRESETS
from vitdiff_jax.runtime import logs, paths

TASKS = {  # name of the task -> degradation operator; the user's mask is applied after it
    "inpaint": "denoise",
    "denoise": "denoise",
    "upscale": "downsample:factor=4,kind=bicubic",
    "deblur": "blur:kind=gaussian,size=13,std=2.0",
    "colourise": "colourise",
    "old-photo": "denoise",  # in its own colours: docs/restoration.md has what colours are worth
    "artefacts": "jpeg:quality=20",
}
AUTO = "auto"
"""The mask of the scratches that are found in a picture."""
NOISE_FLOOR = 2 / 255
"""Estimated noise levels below this, that of 8-bit quantisation, count as zero."""


def spec_of(task: str) -> dict[str, Any]:
    """The operator spec (name and options) of a task, a preset or an operator."""
    spec = parsing.parse(task)
    if spec["name"] not in TASKS:
        return spec
    return parsing.parse(TASKS[spec.pop("name")]) | spec


def files_of(task: str | None) -> list[str]:
    """The paths of files that a task names, as of a kernel or a mask."""
    with config_errors("task: "):
        spec = spec_of(task) if task else {}
    return [str(part["path"]) for part in spec.get("parts", [spec]) if "path" in part]


def operator_of(
    task: str, shape: Shape, rng: np.random.Generator, missing: np.ndarray | None = None
) -> Operator:
    """The operator of a task for images of this shape; ConfigError if it or the mask is wrong.

    missing: bool [H, W] in the degraded image, pixels lost after all other degradation.
    """
    with config_errors("task: "):
        spec = spec_of(task)
        name = spec.pop("name")
        operator = operators.make(name, shape, rng, **spec)
    if missing is None:
        return operator
    degraded = _measured(operator, shape)
    with config_errors("mask: "):
        masks.fitted(missing, degraded, "the degraded image")
    mask = Mask((~missing).astype(np.float32)[..., None], degraded[2])
    return mask if name == "denoise" else Composed((operator, mask), operator.linear)


def missing(mask: Any, x: np.ndarray, task: str) -> np.ndarray | None:
    """bool [H, W], what a mask marks in a picture x; None: nothing is missing.

    mask: see `operators.masks.of`, a path in a bucket, None, or `AUTO`. Raises ConfigError for what
    is no mask, and where no scratch is found but the task is of nothing else.
    """
    if mask is None:
        return None
    if not (isinstance(mask, str) and mask == AUTO):
        with config_errors("mask: "):
            file = isinstance(mask, str | os.PathLike)
            return masks.of(paths.local_copy(mask) if file else mask)
    found = scratches.find(x)
    if found.any():
        return found
    if task in ("inpaint", "edit"):
        raise ConfigError("mask: auto finds no scratches; paint what is missing, white on black")
    logs.say("mask: auto finds no scratches; restored without a mask")
    return None


def _measured(operator: Operator, shape: Shape) -> tuple[int, ...]:
    """The shape of the measurement of one image."""
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(operator.forward, image).shape[1:]


def estimate_noise(y: np.ndarray, missing: np.ndarray | None = None) -> float:
    """Estimate the noise std of a degraded image [H, W, C]; 0 below `NOISE_FLOOR`.

    From the finest wavelet coefficients (Donoho and Johnstone, 1994), by scikit-image. missing:
    bool [H, W], unknown pixels, replaced by their nearest known neighbours.
    """
    from skimage.restoration import estimate_sigma  # takes a second to import

    if missing is not None and missing.any():
        places: Any = ndimage.distance_transform_edt(
            missing, return_distances=False, return_indices=True
        )
        y = y[tuple(places)]
    found = float(np.mean(estimate_sigma(y, channel_axis=-1)))
    return found if found > NOISE_FLOOR else 0.0


@dataclasses.dataclass(frozen=True)
class InverseProblem:
    """Measurements y [N, ...] of images of one shape [H, W, C], or of one picture as such images.

    channels: of the restored picture.
    """

    task: str
    operator: Operator
    y: np.ndarray
    noise_std: float
    shape: Shape
    channels: int

    @property
    def images(self) -> np.ndarray:
        """The measurements as images [N, H, W, C], see `as_image`."""
        return np.asarray(as_image(self.operator, jnp.asarray(self.y), self.shape))

    @property
    def picture(self) -> np.ndarray:
        """The measurements as one picture [H, W, channels]."""
        return from_planes(self.images, self.channels)


def from_measurement(
    x: np.ndarray, channels: int, task: str, missing: np.ndarray | None = None,
    noise_std: float | None = None, seed: int = 0,
) -> InverseProblem:  # fmt: skip
    """The inverse problem of a degraded picture [H, W, 1 or 3] in [-1, 1].

    channels: of the model. missing: bool [H, W], lost pixels. noise_std: in units of [-1, 1]; None:
    estimated. seed: of the operator, if it is random.
    """
    with config_errors("task: "):
        spec = spec_of(task)
    if task.partition(":")[0].strip() == "old-photo" and spec["name"] != "colourise":
        logs.say("old-photo: the colours stay as they are; the task colourise guesses new ones")
    factor = int(np.prod([p.get("factor", 1) for p in spec.get("parts", [spec])]))
    shape = (x.shape[0] * factor, x.shape[1] * factor, channels)
    operator = operator_of(task, shape, np.random.default_rng(seed), missing)
    measured = _measured(operator, shape)
    coloured = measured[-1] == 1 < channels  # the operator removes colour
    y = x.mean(-1, keepdims=True)[None] if coloured else to_planes(x, channels)
    if measured != y.shape[1:]:
        raise ConfigError(
            f"task: {task} yields measurements of shape {measured}, not images of {x.shape}"
            " (height, width, channels); use --degrade to degrade a clean image first"
        )
    if noise_std is None:
        noise_std = estimate_noise(x, missing)
    if missing is not None:
        y = np.where(missing[..., None], 0, y)
    return InverseProblem(task, operator, y, noise_std, shape, channels if coloured else x.shape[2])


def from_clean(
    x: np.ndarray, task: str, missing: np.ndarray | None, noise_std: float | None,
    seeds: np.ndarray, channels: int | None = None,
) -> InverseProblem:  # fmt: skip
    """The inverse problem of clean images [N, H, W, C], degraded by one operator.

    seeds [N]: of the noise; the first also seeds a random operator. missing: as in
    `from_measurement`. noise_std None: the preset's, else 0. channels: of the picture that the
    images form; None: their own.
    """
    shape = x.shape[1:]
    operator = operator_of(task, shape, np.random.default_rng(int(seeds[0])), missing)
    if noise_std is None:
        preset = PRESETS.get(task.partition(":")[0])
        noise_std = preset.noise_std if preset else 0.0
    y = degrade(operator, x, noise_std, seeds)
    return InverseProblem(task, operator, y, noise_std, shape, channels or shape[2])


def degrade(operator: Operator, x: np.ndarray, noise_std: float, seeds: np.ndarray) -> np.ndarray:
    """operator.forward(x) + noise, for image i from seeds[i]; complex noise for complex y.

    Entries that measure nothing, such as masked pixels, get no noise: methods that minimise
    |y - A x| would see it as a residual.
    """
    y = np.asarray(operator.forward(jnp.asarray(x)))
    probe = np.random.default_rng(0).standard_normal((1, *x.shape[1:])).astype(np.float32)
    measured = np.asarray(operator.forward(jnp.asarray(probe))) != 0

    def noise(seed):
        draws = np.random.default_rng([int(seed), 1]).standard_normal((2, *y.shape[1:]))
        return draws[0] + 1j * draws[1] if np.iscomplexobj(y) else draws[0]

    noises = measured * np.stack([noise(seed) for seed in seeds])
    return (y + noise_std * noises).astype(y.dtype)


def to_planes(x: np.ndarray, channels: int) -> np.ndarray:
    """A picture [H, W, C] as images [P, H, W, channels] for a model of `channels`."""
    if x.shape[2] == channels:
        return x[None]
    if channels == 1:  # each colour channel separately
        return np.moveaxis(x, 2, 0)[..., None]
    return np.repeat(x, channels, 2)[None]


def from_planes(planes: np.ndarray, channels: int) -> np.ndarray:
    """Images [P, H, W, C] of `to_planes` as one picture [H, W, channels]."""
    if len(planes) == channels > 1:
        return np.moveaxis(planes[..., 0], 0, 2)
    return planes[0] if planes.shape[3] == channels else planes[0].mean(-1, keepdims=True)
