"""Data sets that TFDS's own builders have prepared, once for all tests of a process."""

import functools

import jax
import pytest

from tests.data import homes


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A function: name -> (`homes.Home`, what --mode=prepare said)."""

    @functools.cache
    def get(name):
        made = homes.home(tmp_path_factory.mktemp(name), name)
        with homes.no_checksums():
            code, said, _ = made.prepare()
        assert code == 0
        return made, said

    return get


@pytest.fixture(scope="module")
def unoptimised():
    """Programs that run a few steps only: more than half of the time to compile is saved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # for processes
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)
