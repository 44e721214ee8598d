"""The patch grid of samples: how far the borders of a ViT's patches stand out.

A step is the difference of two neighbouring pixels in a row or column. The ratio of a set is its
mean squared step across patch borders over that elsewhere, and "value" is the ratio of the samples
over that of real images: 1 without a grid, above 1 with edges at the borders, below where pixels
are smoother there. "energy" is the fraction of the spectral energy of rows and columns, without
their means, at the patch frequency and its multiples, again over that of real images. Of white
noise the fraction is that of the frequencies, of patches that are all alike 1; unlike the steps, it
is the same wherever the grid lies.

"low" and "high" are what groups of real images reach by chance: the "value" of two random groups,
of as many images as the samples and the reference, lies in this band in all but 3 of 1000
pairs. Its ends are exp(-3 s) and exp(3 s), where s is the standard deviation of log(value) by the
delta method: s^2 = (1/N + 1/M) var(b/B - e/E), with the mean squared steps b across borders and e
elsewhere of a real image, and their means B and E.
"""

import math

import numpy as np

from vitdiff_jax.evaluation.frechet import Moments
from vitdiff_jax.evaluation.metric import Batch, Part, Setting

DEVIATIONS = 3
CHUNK = 32
"""Images at a time, as int32: of 512x512 in colour, 0.1 GB."""


class Extractor:
    """Gives "grid" [N, 6]: b, e, energy at multiples of the patch frequency and in all, H, W."""

    def __init__(self, patch: int):
        self.patch, self.name = patch, f"patch-grid-{patch}"

    def check(self, shape: tuple[int, ...]) -> None:
        """ValueError unless images [H, W, C] have patches and borders between them."""
        height, width = shape[:2]
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"patch_grid: patches of {self.patch} pixels do not divide the {height}x{width}"
                " images"
            )
        if self.patch == 1 or max(height, width) == self.patch:
            what = "one pixel" if self.patch == 1 else "the whole image"
            raise ValueError(f"patch_grid: a patch is {what}: no borders to compare with the rest")

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        self.check(batch.images.shape[1:])
        chunks = (batch.images[i : i + CHUNK] for i in range(0, len(batch.images), CHUNK))
        return {"grid": np.concatenate([_measure(chunk, self.patch) for chunk in chunks])}


class Metric:
    """The ratio of samples over that of real images ("value"), its band, and the energy's."""

    name = "patch_grid"
    compares, higher_is_better, ideal = True, False, 1.0

    def __init__(self, setting: Setting):
        patch = setting.patch
        if patch is None:
            raise ValueError("patch_grid needs a model with patches, that is with model.patch")
        extractor = setting.shared(lambda _: Extractor(patch), "patch_grid")
        self.name, self.check = f"patch_grid/{patch}px", extractor.check
        self.parts = (Part(extractor, "grid", Moments),)

    def check_sizes(self, own: tuple[int, ...], real: tuple[int, ...]) -> None:
        """ValueError unless samples and real images are of one height and width."""
        if own[:2] != real[:2]:
            sizes = (f"{height}x{width}" for height, width, *_ in (own, real))
            raise ValueError("{}: samples are {} pixels, real images {}".format(self.name, *sizes))

    def result(self, samples, reference) -> dict[str, float]:
        (own, _), (real, covariance) = samples[0].gaussian(), reference[0].gaussian()
        self.check_sizes(tuple(map(round, own[4:])), tuple(map(round, real[4:])))
        if not real[:3].all():
            raise ValueError(f"{self.name}: the real images are too plain to compare with")
        gradient = np.array([1, -1]) / real[:2]
        variance = gradient @ covariance[:2, :2] @ gradient
        spread = math.sqrt(max(variance, 0) * (1 / samples[0].count + 1 / reference[0].count))
        with np.errstate(divide="ignore", invalid="ignore"):  # of plain samples
            value, energy = own[[0, 2]] / own[[1, 3]] / (real[[0, 2]] / real[[1, 3]])
        return {
            "value": float(value),
            "low": math.exp(-DEVIATIONS * spread),
            "high": math.exp(DEVIATIONS * spread),
            "energy": float(energy),
        }


def _measure(images: np.ndarray, patch: int) -> np.ndarray:
    """`Extractor`'s rows [N, 6] of images uint8 [N, H, W, C]; along axes of several patches."""
    sums, counts = np.zeros((4, len(images))), np.zeros((4, 1))
    for axis in (1, 2):
        if images.shape[axis] > patch:
            lines = np.moveaxis(images, axis, 1).reshape(len(images), images.shape[axis], -1)
            lines = lines.astype(np.int32)  # [N, length, lines]
            sums += np.stack([*_steps(lines, patch), *_energies(lines, patch)])
            borders = lines.shape[1] // patch - 1
            counts[:2, 0] += lines.shape[2] * np.array([borders, lines.shape[1] - 1 - borders])
    counts[2:] = 1
    sizes = np.broadcast_to(images.shape[1:3], (len(images), 2))
    return np.concatenate([(sums / counts).T, sizes], 1)


def _steps(lines: np.ndarray, patch: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of squared steps [N] across borders and elsewhere, of lines [N, length, lines]."""
    squares = (np.diff(lines, axis=1) ** 2).sum(2)  # [N, length - 1]
    borders = squares[:, patch - 1 :: patch].sum(1)
    return borders, squares.sum(1) - borders


def _energies(lines: np.ndarray, patch: int) -> tuple[np.ndarray, np.ndarray]:
    """Spectral energies [N] at the multiples of the patch frequency and at all but frequency 0.

    Added up over the patches of a line, all other frequencies vanish (aliasing); sums over
    frequencies are those over pixels (Parseval).
    """
    count, length, _ = lines.shape
    folded = lines.reshape(count, length // patch, patch, -1).sum(1)  # [N, patch, lines]
    constant = folded.sum(1) ** 2
    multiples = patch * (folded**2).sum(1) - constant
    everything = length * (lines**2).sum(1) - constant
    return multiples.sum(1) / length, everything.sum(1) / length
