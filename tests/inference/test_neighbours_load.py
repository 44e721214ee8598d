"""What `load` and `load_config` are asked for, by a caller in Python."""

import pathlib

import numpy as np
import pytest
from etils import epath

from vitdiff_jax.experiment import config
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import loading


def named(ema=None, ema_width=None, **changes):
    settings = config.complete(dict(train=dict(ema=(0.5, 0.99), **changes)))
    return loading._ema_name(settings, ema, ema_width)


@pytest.mark.parametrize("ema", [0.99, np.float64(0.99), np.array(0.99)])
def test_one_that_training_has_maintained(ema):
    assert named() == "0.5"
    assert named(ema) == "0.99"
    assert named(ema_width=np.float64(0.2), ema_widths=(0.05, 0.1)) == "width0.2"


@pytest.mark.parametrize(("given", "match"), [
    (dict(ema=0.9), r"sample\.ema: 0\.9 is not one of"), (dict(ema="0.5"), "^ema: '0.5' is not a"),
    (dict(ema=[0.5]), r"^ema: \[0\.5\] is not a number"), (dict(ema=True), "^ema: True is not a"),
    (dict(ema=float("nan")), "^ema: nan is not finite"), (dict(ema=2), "^ema: 2.0 is not in"),
    (dict(ema_width=0.1), "post-hoc EMAs need stored ones"),
    (dict(ema_width=-1), "^ema_width: -1.0 is not in"),
    (dict(ema_width="0.1"), "^ema_width: .0.1. is not a number"),
    (dict(ema=0.5, ema_width=0.1), "alternatives"),
])  # fmt: skip
def test_others_are_named(given, match):
    with pytest.raises(ConfigError, match=match):
        named(**given)


def test_a_config_may_be_a_path():
    assert config.load(pathlib.Path("configs/digits.py")).data.name == "digits"


@pytest.mark.parametrize(("given", "match"), [
    (dict(train=dict(steps=3)), r"trained with another config .*train\.batch"),
    (dict(model=3), r"^config\.model: 3 is not a section"),
    ("configs/digits.py", "is not a dict or ConfigDict"),
])  # fmt: skip
def test_a_config_that_is_not_the_workdirs_is_one_line(tmp_path, given, match):
    config.save(config.complete(dict(train=dict(batch=7))), epath.Path(tmp_path) / "config.json")
    with pytest.raises(ConfigError, match=match):
        loading.load(tmp_path, given)
