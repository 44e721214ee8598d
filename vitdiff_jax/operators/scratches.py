"""Scratches found in a picture: thin, long strokes, bright or dark, for the mask "auto".

At each octave of scale, the mean of a short line is compared with those of the parallel lines on
both sides (an edge differs on one side only), in sixteen directions, for three lines in a row. A
scratch stands out against the texture around it (threshold with hysteresis) and is long, straight
rather than a network, and nearly white or nearly black. What else looks like that is taken for one
too: ropes, wires, the strokes of letters on a clear ground. Dust and stains are not looked for.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import ndimage

DIRECTIONS, LENGTH, ASIDE = 16, 7, 3
"""Of the lines: their number, and in pixels their length and the distance of the parallel ones."""
WIDEST = 1 / 96
"""Width of the widest scratches, of the shorter side of the picture; at least 5 pixels."""
LARGEST = 2048
"""Shorter side at which scratches are looked for; larger pictures are reduced first, for time."""
WINDOW = 33
"""Side of the surroundings of a pixel, in pixels."""
HIGH, LOW = 0.25, 0.18
"""Contrast of a scratch somewhere, and everywhere; the picture's black and white are -1 and 1."""
TEXTURE = 6.0
"""The contrast of a scratch over the mean of lines around it; LOW / HIGH of it everywhere."""
CONTRAST, TONE, APART = 0.45, 0.6, 2.0
"""Means along a scratch: its contrast, its tone, and its distance from the mean tone around it, in
standard deviations of that."""
SHORTEST, STRAIGHT = 16, 0.4
"""Pixels in a row with three lines, and the distance of the ends as a share of them."""
EDGE = 0.6
"""How far its pixels are from its tone, at most, as a share of its contrast."""
FLAT = 0.05
"""Contrast of a whole picture, in units of [-1, 1], below which nothing is looked for."""


def find(x: np.ndarray) -> np.ndarray:
    """bool [H, W], True on scratches of a picture, float [H, W, C] in [-1, 1]; maybe none."""
    grey = np.asarray(x, np.float32).mean(-1)
    black, white = np.percentile(grey, (1, 99))
    found = np.zeros(grey.shape, bool)
    if white - black < FLAT:
        return found
    grey = np.clip((2 * grey - white - black) / (white - black), -1.5, 1.5)
    for factor, level in _octaves(grey):
        strokes = _strokes(level) | _strokes(-level)
        whole = strokes.repeat(factor, 0).repeat(factor, 1)
        found[: whole.shape[0], : whole.shape[1]] |= whole
    return found


def _octaves(grey: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(factor, picture reduced by it), until the widest scratches have two or three pixels."""
    factor, widest = 1, max(5.0, WIDEST * min(grey.shape))
    while min(grey.shape) >= WINDOW:
        if min(grey.shape) <= LARGEST:
            yield factor, grey
        factor *= 2
        if factor > widest / 2:
            return
        height, width = (n // 2 * 2 for n in grey.shape)
        grey = grey[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3))


def _moved(padded: np.ndarray, by: np.ndarray, margin: int) -> np.ndarray:
    """The array without a margin, as seen from a place `by` (down, right) away."""
    (down, right), (height, width) = by, padded.shape
    return padded[margin + down : height - margin + down, margin + right : width - margin + right]


def _contrasts(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much brighter a line through each pixel is than both of its neighbours, [H, W].

    (the least of three lines in a row, of one line), each of the best direction, and at least 0.
    """
    half, reach = LENGTH // 2, LENGTH // 2 + ASIDE + LENGTH
    padded, here = np.pad(grey, reach, mode="edge"), np.zeros(2, int)
    three, single = np.zeros_like(grey), np.zeros_like(grey)
    for angle in np.arange(DIRECTIONS) * (np.pi / DIRECTIONS):
        along = np.array([np.sin(angle), np.cos(angle)])
        aside = np.rint(ASIDE * along[::-1] * (1, -1)).astype(int)
        line = np.zeros([n - 2 * half for n in padded.shape], np.float32)
        for step in range(-half, half + 1):
            line += _moved(padded, np.rint(step * along).astype(int), half)
        line /= LENGTH
        beside = np.maximum(_moved(line, aside, ASIDE), _moved(line, -aside, ASIDE))
        line = _moved(line, here, ASIDE) - beside
        one, ahead = _moved(line, here, LENGTH), np.rint(LENGTH * along).astype(int)
        both = np.minimum(_moved(line, ahead, LENGTH), _moved(line, -ahead, LENGTH))
        np.maximum(single, one, out=single)
        np.maximum(three, np.minimum(one, both), out=three)
    return three, single


def _strokes(grey: np.ndarray) -> np.ndarray:
    """bool [H, W]: bright strokes one to three pixels wide."""
    from skimage.filters import apply_hysteresis_threshold  # takes a second to import

    three, single = _contrasts(grey)
    around = ndimage.uniform_filter(three, WINDOW)
    least = np.maximum(HIGH, TEXTURE * around)
    candidates = apply_hysteresis_threshold(three, LOW / HIGH * least, least)
    found: Any = ndimage.label(candidates, np.ones((3, 3)))
    labels, count = found
    tones = _least_tones(labels, count, grey, three)[labels]
    bright: Any = grey > ndimage.maximum_filter(tones, 2 * LENGTH + 1)
    lines = np.isfinite(tones) | (bright & (single > LOW / HIGH * least))
    grown = ndimage.binary_dilation(np.isfinite(tones), np.ones((3, 3)), LENGTH, mask=lines)
    return ndimage.binary_dilation(grown & bright)  # its soft edges


def _least_tones(
    labels: np.ndarray, count: int, grey: np.ndarray, three: np.ndarray
) -> np.ndarray:  # fmt: skip
    """float [count + 1]: of the pixels of each component; -inf for those that are no scratches."""
    from skimage.morphology import skeletonize

    mean = ndimage.uniform_filter(grey, WINDOW)
    square = ndimage.uniform_filter(grey * grey, WINDOW)
    apart = (grey - mean) / np.sqrt(np.maximum(square - mean * mean, 1e-6))
    middle = skeletonize(labels > 0)
    of = labels[middle]
    length = np.bincount(of, minlength=count + 1)

    def along(values):
        return np.bincount(of, values[middle], count + 1) / np.maximum(length, 1)

    extent = [
        np.hypot(*(part.stop - part.start for part in box)) for box in ndimage.find_objects(labels)
    ]
    chosen = (length >= SHORTEST) & (np.array([0, *extent]) >= STRAIGHT * length)
    contrast, tone = along(three), along(grey)
    chosen &= (contrast > CONTRAST) & (tone > TONE) & (along(apart) > APART)
    return np.where(chosen, tone - contrast * EDGE, -np.inf).astype(np.float32)
