"""What all metrics share: the digits, whose splits are read once, and Inception's weights."""

import pytest

from tests.evaluation import weights
from vitdiff_jax.data import digits, pipeline
from vitdiff_jax.evaluation.metric import Setting
from vitdiff_jax.runtime import parallel


@pytest.fixture(scope="session")
def dataset():
    return digits.dataset()


@pytest.fixture(scope="session")
def heldout(dataset):
    """Images and labels of the held-out split."""
    return pipeline.stacked(dataset.heldout)


@pytest.fixture(scope="session")
def inception(tmp_path_factory):
    """The path of weights that have the published names and shapes, and random values."""
    return weights.write(tmp_path_factory.mktemp("weights") / "inception.safetensors")


@pytest.fixture(scope="session")
def setting(dataset, inception):
    """What metrics are made from; networks and classifiers are made once for all of them."""
    return Setting(lambda: dataset, parallel.make_mesh(), str(inception))
