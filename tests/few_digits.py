"""The digits, but few of them: for networks that take a tenth of a second an image."""

import dataclasses

import numpy as np

from vitdiff_jax.data import digits, pipeline


class Moved(pipeline.InMemory):
    """By up to a pixel at random in training; `read` examples so far, in this process."""

    read = 0

    def mark(self, which):
        """For which no example is read."""
        return f"{len(which)} digits"

    def example(self, index, rng=None):
        Moved.read += 1
        found = super().example(index)
        if rng is not None:
            found["image"] = np.roll(found["image"], rng.integers(-1, 2, 2), (0, 1))
        return found


def dataset(train: int = 40, heldout: int = 30, moved: bool = False):
    """So many of each split."""
    whole, kind = digits.dataset(), Moved if moved else pipeline.InMemory
    splits = {
        "train": kind(whole.train.images[:train], whole.train.labels[:train]),
        "heldout": kind(whole.heldout.images[:heldout], whole.heldout.labels[:heldout]),
    }
    return dataclasses.replace(whole, **splits)
