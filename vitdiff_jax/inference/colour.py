"""Colours for grey photographs that are larger than the model's images: at low resolution first.

A model guesses colours from what it sees, and of a large picture it sees small parts. So the
picture is reduced until the model sees the whole scene, and restored there in colour; the colours
are enlarged along the edges of the picture itself (fast guided filter, arXiv:1505.00996). The grey
picture is denoised and inpainted at full resolution and is the mean of the result's channels.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from vitdiff_jax.inference.progress import Progress
from vitdiff_jax.inference.restoring import Cond, Restored, Restorer
from vitdiff_jax.inference.tasks import InverseProblem, operator_of, spec_of
from vitdiff_jax.operators.compose import Composed

RADIUS = 2
"""Of the windows in which colours are affine in grey, in pixels of the reduced picture."""
SMOOTHNESS = 1e-3
"""Variance of the grey in a window, in units of [-1, 1], below which its colour is constant."""
SUMMED = ("network_calls", "seconds", "tiles")
"""Costs of two restorations that add up."""


def factor_of(problem: InverseProblem, model: tuple[int, ...]) -> int:
    """How far to reduce a picture for its colours; 1: not at all, restore it as it is.

    model: the shape of the model's images.
    """
    if spec_of(problem.task)["name"] != "colourise" or model[2] != 3 or len(problem.y) > 1:
        return 1
    return max(1, min(problem.shape[:2]) // min(model[:2]))


def restore(
    restorer: Restorer, problem: InverseProblem, method: str | None, cond: Cond, seeds: np.ndarray,
    factor: int, progress: Progress | None = None,
) -> Restored:  # fmt: skip
    """`Restorer.restore` of y [1, H, W, 1], with colours found at 1 / factor of its size.

    The total that `progress` is told grows once, when the small picture is done.
    """
    grey, known, shape = problem.y[0], _known(problem), problem.shape
    small, seen = reduced(grey[..., 0], known, factor)
    rng, size = np.random.default_rng(0), (*small.shape, shape[2])
    operator = operator_of("colourise", size, rng, None if seen.all() else ~seen)
    parts = [InverseProblem(
        problem.task, operator, small[None, ..., None], problem.noise_std / factor, size, shape[2]
    )]  # fmt: skip
    if problem.noise_std or not known.all():
        operator = operator_of("denoise", shape, rng, None if known.all() else ~known)
        y = np.repeat(problem.y, shape[2], -1)
        parts.append(InverseProblem(problem.task, operator, y, problem.noise_std, shape, 1))
    parted, found = progress and _Parted(progress), []
    for part in parts:
        found.append(restorer.restore(part, method, cond, seeds, parted))
        if parted:
            parted.end()
    greys = found[1].samples if len(found) > 1 else [grey] * len(seeds)
    samples = [coloured(*pair, factor) for pair in zip(greys, found[0].samples)]
    about = _costs([part.about for part in found]) | {"noise_std": problem.noise_std}
    return Restored(np.stack(samples), problem.picture, about | {"colours_reduced_by": factor})


class _Parted:
    """The progress of one part after another."""

    def __init__(self, progress: Progress):
        self.progress, self.before, self.total = progress, 0, 0

    def __call__(self, done: int, total: int) -> None:
        self.total = total
        self.progress(self.before + done, self.before + total)

    def end(self) -> None:
        """Of a part."""
        self.before += self.total


def _known(problem: InverseProblem) -> np.ndarray:
    """bool [H, W]."""
    if not isinstance(problem.operator, Composed):
        return np.ones(problem.shape[:2], bool)
    return np.asarray(problem.operator.parts[-1].known)[..., 0] > 0


def _costs(abouts: list[Mapping[str, Any]]) -> dict[str, Any]:
    methods = " and ".join(dict.fromkeys(about["method"] for about in abouts))
    total = {key: sum(about[key] for about in abouts) for key in SUMMED}
    memory = max(about["memory"] for about in abouts)
    return dict(abouts[0]) | total | {"method": methods, "memory": memory}


def reduced(grey: np.ndarray, known: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """(means of known pixels in squares of `factor` pixels [h, w], bool: where there are any).

    Squares that cross the border of the picture [H, W] have fewer; those without any are 0.
    """
    beyond = [(0, -n % factor) for n in grey.shape]
    height, width = (-(-n // factor) for n in grey.shape)

    def total(values):
        squares = np.pad(values, beyond).reshape(height, factor, width, factor)
        return squares.sum((1, 3), dtype=np.float64)

    count = total(known)
    found = total(np.where(known, grey, 0)) / np.maximum(count, 1)
    return found.astype(np.float32), count > 0


def coloured(grey: np.ndarray, colours: np.ndarray, factor: int) -> np.ndarray:
    """The picture [H, W, C] whose mean of channels is `grey` [H, W, 1], with colours [h, w, C].

    Of the colours only the differences from their own mean count. They are made paler where the
    result would leave [-1, 1].
    """
    low, _ = reduced(grey[..., 0], np.ones(grey.shape[:2], bool), factor)
    chroma = colours - colours.mean(-1, keepdims=True)
    chroma = guided(grey[..., 0], low, chroma, factor)
    chroma -= chroma.mean(-1, keepdims=True)
    room = (np.sign(chroma) - grey) / np.where(chroma == 0, 1, chroma)
    share = np.where(chroma == 0, 1, room).min(-1, keepdims=True)
    return (grey + np.clip(share, 0, 1) * chroma).astype(np.float32)


def guided(
    guide: np.ndarray, low: np.ndarray, values: np.ndarray, factor: int,
    radius: int = RADIUS, smoothness: float = SMOOTHNESS,
) -> np.ndarray:  # fmt: skip
    """Values [h, w, C] enlarged to the size of a guide [H, W], of which `low` [h, w] is reduced.

    The fast guided filter: in each window of the small picture, values = a low + b by least squares
    with the penalty smoothness a^2; a and b are averaged over windows and interpolated linearly.
    """

    def mean(array):
        return ndimage.uniform_filter(array.astype(np.float64), 2 * radius + 1, mode="nearest")

    height, width = guide.shape
    middle = mean(low)
    variance = mean(low * low.astype(np.float64)) - middle**2
    found = np.empty((height, width, values.shape[2]), np.float32)
    for channel in range(values.shape[2]):
        value = values[..., channel].astype(np.float64)
        slope = (mean(low * value) - middle * mean(value)) / np.maximum(
            variance + smoothness, 1e-12
        )
        offset = mean(value) - slope * middle
        a, b = (_enlarged(mean(array), factor)[:height, :width] for array in (slope, offset))
        found[..., channel] = a * guide + b
    return found


def _enlarged(array: np.ndarray, factor: int) -> np.ndarray:
    """[h, w] as float32 [factor h, factor w], linearly interpolated."""
    height, width = array.shape
    size = factor * width, factor * height
    image = Image.fromarray(array.astype(np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))
