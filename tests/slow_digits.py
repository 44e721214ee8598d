"""The digits, delivered slowly, so that a test can stop a run in its middle."""

import dataclasses
import time

import jax

from vitdiff_jax.data import digits, pipeline

SECONDS = 0.01  # for each example


class Slow(pipeline.InMemory):
    """broken: process 1 cannot read example 20 of its run."""

    broken, read = False, 0

    def example(self, index, rng=None):
        time.sleep(SECONDS)
        self.read += 1
        if self.broken and jax.process_index() == 1 and self.read == 20:
            raise pipeline.DataError("/data/digits: Input/output error")
        return super().example(index, rng)


def dataset(broken: bool = False):
    """The data set of the config name `tests.slow_digits`."""
    plain = digits.dataset()
    train = Slow(plain.train.images, plain.train.labels)
    train.broken = broken
    return dataclasses.replace(plain, train=train)
