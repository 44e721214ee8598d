"""A few digits, moved by up to a pixel at random in training; what is read of them is counted."""

import dataclasses

import numpy as np

from tests import few_digits
from vitdiff_jax.data import pipeline

TRAIN = 101


class Moved(pipeline.InMemory):
    """`read` examples so far, in this process."""

    read = 0

    def example(self, index, rng=None):
        Moved.read += 1
        found = super().example(index)
        if rng is not None:
            found["image"] = np.roll(found["image"], rng.integers(-1, 2, 2), (0, 1))
        return found


def dataset():
    """The data set of the config name `tests.moved_digits`."""
    plain = few_digits.dataset(TRAIN, heldout=30)
    splits = (plain.train, plain.heldout)
    train, heldout = (Moved(split.images, split.labels) for split in splits)
    return dataclasses.replace(plain, train=train, heldout=heldout)
