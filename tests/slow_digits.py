"""The digits, delivered slowly, so that a test can stop a run in its middle."""

import dataclasses
import time

from vitdiff_jax.data import digits, pipeline

SECONDS = 0.01  # for each example


class Slow(pipeline.InMemory):
    def example(self, index, rng=None):
        time.sleep(SECONDS)
        return super().example(index, rng)


def dataset():
    """The data set of the config name `tests.slow_digits`."""
    plain = digits.dataset()
    return dataclasses.replace(plain, train=Slow(plain.train.images, plain.train.labels))
