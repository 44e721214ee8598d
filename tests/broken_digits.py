"""The digits, slowly, which process 1 cannot read any more after a while."""

import dataclasses

import jax

from tests import slow_digits
from vitdiff_jax.data.pipeline import DataError


class Broken(slow_digits.Slow):
    """Its disk fails at example 20 of the run, say."""

    read = 0

    def example(self, index, rng=None):
        self.read += 1
        if jax.process_index() == 1 and self.read == 20:
            raise DataError("/data/digits: Input/output error")
        return super().example(index, rng)


def dataset():
    """The data set of the config name `tests.broken_digits`."""
    plain = slow_digits.dataset()
    return dataclasses.replace(plain, train=Broken(plain.train.images, plain.train.labels))
