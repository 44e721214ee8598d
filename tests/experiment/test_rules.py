"""Every number has a range, and is refused outside it wherever it comes from."""

import itertools
import math
import pathlib

import numpy as np
import pytest

import vitdiff_jax
from tests import tiny
from vitdiff_jax import restoration
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment import rules
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference.restoring import Method
from vitdiff_jax.operators import parsing
from vitdiff_jax.training import loop

FREE = (  # any number will do
    "sample.guidance", "diffusion.times.mean", "sample.grid.low", "sample.grid.high",
)  # fmt: skip


def keys():
    """{key: (component section, name, default)} of all numbers of all components."""
    found = {}
    base = dict(rules.leaves(config_lib.complete({})))
    found |= {key: (None, None, value) for key, value in base.items()}
    for section, place in config_lib.COMPONENTS.items():
        if section != "data":  # each checks its own, where it reads
            for name in config_lib.available(place):
                of_it = config_lib.complete({}, [f"--config.{section}.name={name}"])
                for key, value in rules.leaves(of_it):
                    if key.startswith(f"{section}.") and key not in base:
                        found[key] = (section, name, value)
    kinds = (int, float, tuple)
    return {key: v for key, v in found.items() if isinstance(v[2], kinds) and v[2] is not True}


NUMBERS = {
    key: found
    for key, found in keys().items()
    if not isinstance(found[2], (bool, tuple)) and not key.startswith("data.")
}


def refusal(given, overrides=()):
    """The message of the ConfigError of a config, which may come from the network's own check."""
    with pytest.raises(ConfigError) as caught:
        experiment_lib.build(config_lib.complete(given, overrides), (32, 32, 3), {})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_there_are_many():
    assert len(NUMBERS) > 70
    own = ("model.", "diffusion.", "sample.grid.")  # of components, which check the rest
    assert not [key for key in NUMBERS if key not in rules.RANGES and not key.startswith(own)]


@pytest.mark.parametrize("key", sorted(NUMBERS))
def test_no_number_can_be_absurd(key):
    """Not finite, or far below zero: from the command line, and from Python."""
    section, name, default = NUMBERS[key]
    chosen = [f"--config.{section}.name={name}"] if section else []
    wrong = ["-7"] if key not in FREE else []
    if isinstance(default, float):
        wrong += ["nan", "-inf"] + ["inf"] * (key not in rules.INFINITE)
    for value in wrong:
        assert refusal({}, [*chosen, f"--config.{key}={value}"]).startswith(f"config.{key}: ")
    config = config_lib.complete({}, chosen)
    parent, _, last = key.rpartition(".")
    home = config
    for part in parent.split(".") if parent else ():
        home = home[part]
    for value in wrong:
        home[last] = type(default)(value)
        with pytest.raises(ConfigError, match=rf"^config\.{key}: "):
            experiment_lib.build(config, (32, 32, 3), {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.learning_rate=0", "config.optimizer.learning_rate: 0.0 is not more than 0"),
        (
            "optimizer.learning_rate=nan",
            "config.optimizer.learning_rate: nan is not a finite number",
        ),
        ("optimizer.b1=1.5", "config.optimizer.b1: 1.5 is not in [0, 1)"),
        ("optimizer.b2=1", "config.optimizer.b2: 1.0 is not in [0, 1)"),
        ("optimizer.eps=0", "config.optimizer.eps: 0.0 is not more than 0"),
        ("optimizer.weight_decay=-0.1", "config.optimizer.weight_decay: -0.1 is less than 0"),
        ("optimizer.clip=-1", "config.optimizer.clip: -1.0 is less than 0"),
        ("seed=-1", "config.seed: -1 is less than 0"),
        ("seed=4294967296", "config.seed: 4294967296 is more than 4294967295"),
        (
            "evaluate.seed=4294967290",
            "config.evaluate.seed: 4294967290 and the seeds of 5,000 images",
        ),
        ("train.steps=0", "config.train.steps: 0 is less than 1"),
        ("train.steps=99999999999", "config.train.steps: 99999999999 is more than 2147483647"),
        ("train.ema=(0.9,1.0)", "config.train.ema: 1.0 is not in [0, 1)"),
        ("train.ema_widths=(0.3,)", "config.train.ema_widths: 0.3 is not in (0, 0.288675]"),
        (
            "degradation.noise=25",
            "config.degradation.noise: 25.0 is not in [0, 2]; pixels are in [-",
        ),
        ("restore.noise_std=25", "config.restore.noise_std: 25.0 is not in [0, 2]; pixels are in"),
        ("restore.noise_std=nan", "config.restore.noise_std: nan is not a finite number"),
        ("sample.guidance_low=0.9", None),
        ("sample.guidance_high=1.5", "config.sample.guidance_high: 1.5 is not in [0, 1]"),
        ("evaluate.sweep.steps=(0,)", "config.evaluate.sweep.steps: 0 is less than 1"),
        ("evaluate.sweep.guidance=(1.0,float('nan'))", None),
        ("parallel.fsdp=0", "config.parallel.fsdp: 0 is less than 1"),
        (
            "optimizer.decay=linear",
            "config.optimizer.decay: 'linear' is not one of constant, cosine",
        ),
    ],
    ids=str,
)
def test_what_is_out_of_range(change, message):
    overrides = [f"--config.{change}"]
    if message is not None:
        with pytest.raises(ConfigError) as caught:
            config_lib.complete({}, overrides)
        assert str(caught.value).startswith(message)


def test_an_interval_of_no_times_is_refused():
    given = dict(sample=dict(guidance_low=0.8, guidance_high=0.2))
    assert "no time lies between" in refusal(given)


def test_infinity_where_it_has_a_meaning():
    """EDM's own default of s_max."""
    flags = ["--config.sample.sampler.name=edm_stochastic", "--config.sample.sampler.s_max=inf"]
    assert config_lib.complete({}, flags).sample.sampler.s_max == math.inf


@pytest.mark.parametrize(
    "steps", [np.int64(7), np.uint8(7), np.array(7), np.int32([7])[0]], ids=lambda v: str(type(v))
)
def test_numpys_numbers_are_numbers(steps):
    config = config_lib.complete(
        dict(train=dict(steps=steps), optimizer=dict(clip=np.float32(0.5)))
    )
    assert (config.train.steps, config.optimizer.clip) == (7, 0.5)
    assert type(config.train.steps) is int
    found = config_lib.complete(dict(train=dict(ema=np.array([0.5, 0.25]))))
    assert found.train.ema == (0.5, 0.25)
    assert (
        config_lib.complete(dict(diffusion=dict(stratified=np.True_))).diffusion.stratified is True
    )
    found = config_lib.complete(dict(data=dict(name="folder", path=pathlib.Path("x"))))
    assert found.data.path == "x"


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("train", "steps", True), ("optimizer", "clip", True), ("model", "width", True),
     ("model", "width", np.True_), ("sample", "ema", True), ("model", "size", True)],
)  # fmt: skip
def test_true_is_no_number(section, key, value):
    with pytest.raises(ConfigError, match=rf"config.{section}.{key}: True is not "):
        config_lib.complete({section: {key: value}})


@pytest.mark.parametrize(
    "key", ["train.steps", "optimizer.clip", "diffusion.stratified", "train.ema"]
)
def test_none_is_no_value_of_a_key_that_needs_one(key):
    section, name = key.split(".")
    for given in (({section: {name: None}}, []), ({}, [f"--config.{key}=None"])):
        with pytest.raises(ConfigError, match=rf"^config.{key}: None is not "):
            config_lib.complete(*given)


@pytest.mark.parametrize("flags", [["=None"], ["", "None"], ["=8", "=None"], ["=None", "=8"]])
@pytest.mark.parametrize(
    ("key", "value", "other"), [("model.width", 16, 8), ("train.init_from", "runs/x", "8")]
)
def test_none_on_the_command_line_unsets_what_is_optional(key, value, other, flags):
    section, name = key.split(".")
    overrides = []
    for flag in flags:
        overrides += (
            [f"--config.{key}{flag}"] if flag[:1] in ("=", "") and flag != "None" else [flag]
        )
    found = config_lib.complete({section: {name: value}}, overrides)[section][name]
    assert found == (other if flags[-1] == "=8" else None)


def test_python_gets_the_same_lines(tmp_path):
    with pytest.raises(ConfigError, match=r"config.optimizer.b1: 1.5 is not in \[0, 1\)"):
        vitdiff_jax.fit(dict(optimizer=dict(b1=1.5)), tmp_path / "run")
    config = vitdiff_jax.load_config("configs/digits.py")
    config.optimizer.learning_rate = math.nan
    with pytest.raises(ConfigError, match=r"config.optimizer.learning_rate: nan is not a finite"):
        loop.train(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="config: None is not a dict or ConfigDict"):
        loop.train(None, tmp_path / "run")  # type: ignore


def test_a_component_of_ones_own_has_its_own_ranges(tmp_path, monkeypatch):
    (tmp_path / "elsewhere_grid.py").write_text(
        "def mine(schedule, steps, *, shift=-1.0):\n    return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    flags = ["--config.sample.grid.name=elsewhere_grid.mine"]
    assert config_lib.complete({}, flags).sample.grid.shift == -1.0
    with pytest.raises(ConfigError, match=r"config.sample.grid.shift: nan is not a finite number"):
        config_lib.complete({}, [*flags, "--config.sample.grid.shift=nan"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(n=0), "--n: 0 is less than 1"),
        (dict(seed=-1), "--seed: -1 is less than 0"),
        (dict(seed=2**32), "--seed: 4294967296 is more than 4294967295"),
        (dict(seed=2**63), "--seed: 9223372036854775808 is more than 4294967295"),
        (dict(seed=2**32 - 1, n=2), "--seed: 4294967295 and the seeds of 2 images go beyond"),
        (dict(strength=math.nan), "--strength: nan is not a finite number"),
        (dict(strength=1.0), "--strength: 1.0 is not in (0, 1)"),
        (dict(noise=math.inf), "--noise: inf is not a finite number"),
        (dict(price_per_chip_hour=-1.0), "--price_per_chip_hour: -1.0 is less than 0"),
    ],
    ids=str,
)
def test_flags_have_ranges_too(given, message):
    with pytest.raises(ConfigError) as caught:
        rules.check_flags(given)
    assert str(caught.value).startswith(message)


def test_flags_that_are_right():
    rules.check_flags(dict(n=None, seed=2**32 - 1, frames=0, noise=None, verbose=True, label="3"))
    rules.check_flags(dict(seed=np.int64(3), n=np.int32(2)))


@pytest.mark.parametrize("name", restoration.methods())
def test_every_number_of_a_restoration_method_has_a_range(name):
    given = config_lib.options(restoration.module(name).restore)
    for key, default in given.items():
        if isinstance(default, (int, float)):
            for value in ("-7", "nan", "inf"):
                with pytest.raises(ConfigError, match=rf"^method: .*{key}: "):
                    Method.parse(f"{name}:{key}={value}")
            assert Method.parse(f"{name}:{key}={default}").options == {key: default}


@pytest.mark.parametrize("text", ["mask:kind=random,share=nan", "blur:std=inf", "hdr:gain=-1e999"])
def test_options_of_operators_are_finite(text):
    with pytest.raises(ValueError, match=r"^(share|std|gain): .* is not a finite number"):
        parsing.parse(text)


@pytest.mark.parametrize("file", sorted(tiny.REPOSITORY.glob("configs/*.py")), ids=lambda p: p.stem)
def test_the_shipped_configs_keep_them(file):
    config_lib.load(str(file))


def test_ends_belong_to_a_range_or_not():
    for above, below, value in itertools.product([False, True], [False, True], [0, 0.5, 1]):
        inside = value in rules.Range(0, 1, above=above, below=below)
        assert inside == (not (above and value == 0) and not (below and value == 1))
