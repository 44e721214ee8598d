"""Numbers at the door of Python have the ranges of the command line."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vitdiff_jax.experiment import config
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.experiment.defaults import defaults
from vitdiff_jax.inference import arrays, model, sweep
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


@pytest.mark.parametrize("high", [0.2, 0.5])
def test_an_interval_without_a_time_is_refused(high):
    """Its ends are open."""
    assert plain(guidance_low=0.5, guidance_high=0.51)
    with pytest.raises(ConfigError, match=r"^guidance_low: 0\.5 is not less than guidance_high, "):
        plain(guidance_low=0.5, guidance_high=high)


@pytest.mark.parametrize("interval", [(0.9, 0.1), (0, 0)])
def test_so_is_one_of_a_sweep_before_anything_is_sampled(interval):
    settings = config.complete(dict(evaluate=dict(sweep=dict(interval=[(0, 1), interval]))))
    with pytest.raises(ConfigError, match=r"^config\.evaluate\.sweep\.interval: guidance_low: "):
        sweep.rows(settings)


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
