"""The digits, shared by all metrics: their splits are read and classified once."""

import pytest

from vitdiff_jax.data import digits, pipeline


@pytest.fixture(scope="session")
def dataset():
    return digits.dataset()


@pytest.fixture(scope="session")
def heldout(dataset):
    """Images and labels of the held-out split."""
    return pipeline.stacked(dataset.heldout)
