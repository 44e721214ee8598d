"""The digits, delivered slowly, so that a test can stop a run in its middle."""

import dataclasses
import time

from vitdiff_jax.data import digits


class Slow(digits.InMemory):
    """10 ms for each example."""

    def __getitem__(self, index):
        time.sleep(0.01)
        return super().__getitem__(index)


def dataset():
    """The data set of the config name `tests.slow_digits`."""
    plain = digits.dataset()
    return dataclasses.replace(plain, train=Slow(plain.train.images, plain.train.labels))
