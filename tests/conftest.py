"""Tests run on the CPU, and keep what they compile for the next run.

LLVM does not optimise it: that takes longer than to run it, a quarter more for all tests.
"""

import os
import pathlib

CACHE = pathlib.Path.home() / ".cache" / "vitdiff_jax_tests"
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before the first import of jax
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture
def x64():
    """Run a test in float64, where formulas agree to 1e-9 or are different formulas."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def forgotten():
    """Hardly any program serves two files; all together take 6 GB in each worker, else 2.5."""
    yield
    jax.clear_caches()
