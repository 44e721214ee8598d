"""Numbers at the door of Python have the ranges of the command line."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.experiment.defaults import defaults
from vitdiff_jax.inference import arrays, model
from vitdiff_jax.operators import parsing


def plain(**options):
    """What `model.sample` makes of its options."""

    class Experiment:
        config = ConfigDict({"sample": defaults()["sample"]})

    found = object.__new__(model.TrainedModel)
    found.experiment = Experiment()  # pyright: ignore
    return found._plain(options)


@pytest.mark.parametrize(("name", "value"), [
    ("steps", 10**12), ("batch", 2**31), ("guidance_low", -0.1), ("guidance_low", 1.1),
    ("guidance_high", 1.5), ("guidance_high", -1), ("threshold_quantile", 0),
])  # fmt: skip
def test_a_number_out_of_its_range_is_named(name, value):
    with pytest.raises(ConfigError, match=f"^{name}: "):
        plain(**{name: value})


def test_an_interval_without_a_time_is_refused():
    assert plain(guidance_low=0.5, guidance_high=0.5)
    with pytest.raises(ConfigError, match=r"^guidance_low: 0\.5 is more than guidance_high, 0\.2"):
        plain(guidance_low=0.5, guidance_high=0.2)


@pytest.mark.parametrize("std", [0.5, np.float32(0.5), np.array(0.5), jnp.float32(0.5)])
def test_a_noise_level_may_be_an_array_of_one_number(std):
    found = arrays.check_noise(std)
    assert type(found) is float
    assert found == 0.5


def test_16_bits_in_another_byte_order_are_16_bits():
    values = np.array([[0, 65535]], ">u2")
    assert arrays.floats(values).tolist() == [[-1, 1]]


def test_a_task_that_is_not_text_is_refused():
    with pytest.raises(ValueError, match="3 is not text"):
        parsing.parse(3)  # pyright: ignore
