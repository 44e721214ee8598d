"""Flags and keys of one use of `--mode=restore`, given to the other."""

import pathlib

import pytest
from etils import epath

from vitdiff_jax.experiment import usage
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.modes import restore


@pytest.mark.parametrize("key", ["tasks", "methods", "images", "metrics", "noise_std"])
def test_keys_of_the_benchmark_with_an_input_are_named(key):
    overrides = [f"--config.restore.{key}=1", "--config.restore.steps=2"]
    line = usage.unused("restore", overrides, {"input": pathlib.Path("a.png")})
    assert line == f"warning: --mode=restore with --input does not use config.restore.{key}"
    assert usage.unused("restore", overrides, {"input": None}) is None


@pytest.mark.parametrize(("flag", "value"), [
    ("task", "denoise"), ("mask", pathlib.Path("mask.png")), ("method", "ddrm"), ("noise", 0.1),
    ("label", "cat"), ("prompt", "a cat"), ("attributes", "smiling"),
    ("n", 2), ("seed", 0),
])  # fmt: skip
def test_flags_of_an_input_without_one_are_refused(tmp_path, flag, value):
    with pytest.raises(ConfigError, match=f"^--{flag}: .* --input, which is missing"):
        restore.main(None, epath.Path(tmp_path), **{flag: value})
