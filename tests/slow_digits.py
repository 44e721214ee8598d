"""The digits, delivered slowly, so that a test can stop a run in its middle."""

import dataclasses
import time

from vitdiff_jax.data import digits, pipeline


class Slow(pipeline.InMemory):
    """10 ms for each example."""

    def example(self, index, rng=None):
        time.sleep(0.01)
        return super().example(index, rng)


def dataset():
    """The data set of the config name `tests.slow_digits`."""
    plain = digits.dataset()
    return dataclasses.replace(plain, train=Slow(plain.train.images, plain.train.labels))
