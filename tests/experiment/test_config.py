"""Configs: every value has its place and type, and reading a model runs no code."""

import json
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from tests import tiny
from tests.networks import plain
from vitdiff_jax.experiment import build
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.experiment.defaults import defaults
from vitdiff_jax.inference.model import TrainedModel
from vitdiff_jax.runtime import parallel
from vitdiff_jax.training import loop


def refused(call, *arguments):
    """The message of a ConfigError, which must be one line."""
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A module outside the package: a schedule, grid, sampler, and a mark that it was run."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "__init__.py").touch()
    (tmp_path / "elsewhere" / "mine.py").write_text(
        "import dataclasses, pathlib\n"
        "pathlib.Path(__file__).with_suffix('.ran').touch()\n"
        "from vitdiff_jax.diffusion.schedules import RectifiedFlow\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Mine(RectifiedFlow):\n"
        "    noise_scale: float = 3.0\n"
        "def halving(schedule, steps, ratio=0.5):\n"
        "    return [ratio**i for i in range(steps)] + [0.0]\n"
        "def sample(denoise, schedule, times, x, keys, *, strength=0.5):\n"
        "    return 0 * x + strength * times[1]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "elsewhere" / "mine.ran"
    for name in [name for name in sys.modules if name.startswith("elsewhere")]:
        del sys.modules[name]


def test_nothing_given_is_the_defaults():
    config = config_lib.complete({})
    assert config.to_dict() == config_lib.complete(defaults()).to_dict()
    assert config.model.name == "vit"
    assert config.model.patch == 16  # of the component
    assert config.train.steps == 100_000
    assert config.model.width is None


def test_given_values_stand_over_defaults_and_overrides_over_both():
    overrides = ["--config.train.batch=32", "--config.optimizer.learning_rate", "3e-3"]
    config = config_lib.complete(tiny.config(), [*overrides, "--config.train.ema=(0.5,0.9)"])
    assert (config.train.steps, config.train.batch) == (30, 32)
    assert config.optimizer.learning_rate == 3e-3
    assert config.train.ema == (0.5, 0.9)
    assert config.optimizer.b1 == 0.9


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("--config.seed=7", "seed", 7),
        ("--config.optimizer.clip=2", "optimizer.clip", 2.0),
        ("--config.diffusion.stratified=False", "diffusion.stratified", False),
        ("--config.model.width=48", "model.width", 48),  # None in the defaults
        ("--config.sample.ema=0.99", "sample.ema", 0.99),
        ("--config.train.ema=0.9", "train.ema", (0.9,)),
        ("--config.evaluate.metrics=class_accuracy", "evaluate.metrics", ("class_accuracy",)),
        ("--config.diffusion.prediction=v", "diffusion.prediction", "v"),
    ],
)
def test_values_from_the_command_line_have_their_key_s_type(override, key, value):
    config = config_lib.complete(tiny.config(), [override])
    for part in key.split("."):
        config = config[part]
    assert config == value
    assert type(config) is type(value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(train=dict(stepz=3)), "config.train.stepz: no such key; did you mean config.train."),
        (dict(tarin=dict(steps=3)), "config.tarin.steps: no such key; did you mean config.train.s"),
        (dict(sample=dict(sampler=dict(name="euler", eta=1.0))), "config.sample.sampler.eta: no"),
        (dict(qqqqqqqq=1), "config.qqqqqqqq: no such key"),
        (dict(train=3), "config.train: 3 is not a section"),
        (dict(seed=dict(a=1)), "config.seed.a: no such key"),
        (dict(sample=dict(sampler="heun")), "config.sample.sampler: 'heun' is not a section"),
        (dict(train=dict(steps="many")), "config.train.steps: 'many' is not an integer"),
        (dict(train=dict(steps=2.5)), "config.train.steps: 2.5 is not an integer"),
        (dict(train=dict(steps=True)), "config.train.steps: True is not an integer"),
        (dict(optimizer=dict(clip="1")), "config.optimizer.clip: '1' is not a number"),
        (dict(diffusion=dict(stratified=1)), "config.diffusion.stratified: 1 is not True or False"),
        (dict(diffusion=dict(prediction=1)), "config.diffusion.prediction: 1 is not a string"),
        (dict(train=dict(ema=0.9)), "config.train.ema: 0.9 is not a list of values"),
        (dict(model=dict(width="wide")), "config.model.width: 'wide' is not an integer"),
        (
            dict(model=dict(name="vitt")),
            "config.model.name: unknown name 'vitt'; did you mean vit?",
        ),
        (dict(model=dict(name=3)), "config.model.name: 3 is not a string"),
        (dict(diffusion=dict(schedule=dict(name="Schedule"))), "config.diffusion.schedule.name: "),
        (dict(sample=dict(sampler=dict(name="no.such"))), "config.sample.sampler.name: cannot use"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(given, message):
    assert refused(config_lib.complete, given).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.train.stepz=3", "config.train.stepz: no such key; did you mean config.train."),
        ("--train.steps=3", "train.steps: no such key; did you mean config.train.steps?"),
        ("--n=3", "n: no such key"),
        ("--config.train.steps=many", "config.train.steps"),
        ("--config.optimizer.clip=no", "config.optimizer.clip"),
        ("--config.diffusion.stratified=maybe", "config.diffusion.stratified"),
        ("--config.train.steps", ""),
        ("--config.train=3", "config.train: no such key; did you mean config.train."),
        ("train.steps=3", "train.steps=3: not understood; write overrides as --config.key=value"),
        ("-x", ""),
        ("--config.model.name=resnet", "config.model.name: unknown name 'resnet'; available: dit,"),
    ],
)
def test_what_cannot_be_meant_on_the_command_line_is_refused(override, message):
    assert refused(config_lib.complete, tiny.config(), [override]).startswith(message)


def test_another_component_brings_its_own_options():
    """Two timestep distributions have an option `mean`: the old one's value does not survive."""
    given = {"diffusion": {"times": {"name": "logit_normal", "mean": 0.8, "std": 0.8}}}
    assert config_lib.complete(given).diffusion.times.to_dict() == given["diffusion"]["times"]
    flags = ["--config.diffusion.times.name=edm_lognormal", "--config.diffusion.times.std=2"]
    for overrides in (flags, flags[::-1], [part for flag in flags for part in flag.split("=")]):
        found = config_lib.complete(given, overrides).diffusion.times
        assert found.to_dict() == {"name": "edm_lognormal", "mean": -1.2, "std": 2.0}
    found = config_lib.complete(given, ["--config.diffusion.times.name=uniform"])
    assert found.diffusion.times.to_dict() == {"name": "uniform"}
    given["diffusion"]["times"]["name"] = "uniform"
    assert refused(config_lib.complete, given).startswith("config.diffusion.times.mean: no such")


def test_the_same_component_by_name_keeps_the_options_given():
    given = {"model": {"width": 48}, "diffusion": {"schedule": {"noise_scale": 2.0}}}
    overrides = ["--config.model.name=vit", "--config.diffusion.schedule.name=RectifiedFlow"]
    config = config_lib.complete(given, overrides)
    assert config.model.width == 48
    assert config.diffusion.schedule.noise_scale == 2.0
    config = config_lib.complete(given, ["--config.diffusion.schedule.name=EDM"])
    assert "noise_scale" not in config.diffusion.schedule


def test_a_users_config_may_name_code_elsewhere(elsewhere):
    sample = dict(
        sampler=dict(name="elsewhere.mine", strength=1.0),
        grid=dict(name="elsewhere.mine.halving", ratio=0.25),
        steps=2,
    )
    schedule = dict(name="elsewhere.mine.Mine")
    given = dict(model=tiny.WIDE, diffusion=dict(schedule=schedule), sample=sample)
    config = config_lib.complete(given)
    assert elsewhere.exists()
    experiment = build.build(config, (8, 8, 1), {"label": tiny.DIGITS})
    assert isinstance(experiment.model, plain.Model)
    assert experiment.process.schedule.noise_scale == 3.0
    params, mesh = tiny.random_params(experiment), parallel.make_mesh()
    images = TrainedModel(experiment, params, 0, mesh).sample(n=2)
    np.testing.assert_array_equal(images, np.full((2, 8, 8, 1), 159))  # x = 0.25
    given = {"sample": {"sampler": {"name": "elsewhere.mine", "strenght": 1.0}}}
    assert refused(config_lib.complete, given).endswith(
        "did you mean config.sample.sampler.strength?"
    )


@pytest.mark.parametrize(
    "section",
    [
        dict(sample=dict(sampler=dict(name="elsewhere.mine"))),
        dict(diffusion=dict(schedule=dict(name="elsewhere.mine.Mine"))),
        dict(model=dict(name="elsewhere.mine")),
        dict(data=dict(name="elsewhere.mine")),
        dict(diffusion=dict(times=dict(name="elsewhere.mine.sample"))),
        dict(sample=dict(grid=dict(name="elsewhere.mine.sample"))),
        dict(evaluate=dict(metrics=["class_accuracy", "elsewhere.mine"])),
        dict(restore=dict(tasks=["mask:share=0.5+elsewhere.mine:width=2"])),
        dict(restore=dict(methods=["dps", "elsewhere.mine:scale=1.0"])),
        dict(degradation=dict(operators=["denoise", "elsewhere.mine"])),
    ],
    ids=str,
)
def test_a_config_json_may_not(elsewhere, tmp_path, section):
    """Neither where it is read, nor where a user's own config is compared with it."""
    tiny_json = json.loads(json.dumps(tiny.config()))
    for name, values in section.items():
        tiny_json[name] = tiny_json.get(name, {}) | values
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny_json))
    assert "names code outside the package" in refused(config_lib.read, path)
    assert not elsewhere.exists()
    other = config_lib.complete(tiny.config())
    try:
        config_lib.read(path, trusted=other)
    except ConfigError as error:
        assert "code outside the package" in str(error)  # noqa: PT017 - may also be read without
    assert not elsewhere.exists()


def test_what_the_users_config_names_too_is_honoured(elsewhere, tmp_path):
    given = tiny.config(
        sample=dict(sampler=dict(name="elsewhere.mine", strength=1.0)),
        diffusion=dict(schedule=dict(name="elsewhere.mine.Mine")),
        degradation=dict(operators=("elsewhere.mine", "mask:share=0.5")),
    )
    config = config_lib.complete(given)
    config_lib.save(config, tmp_path / "config.json")
    stored = config_lib.read(tmp_path / "config.json", trusted=config)
    assert config_lib.differences(stored, config) == []
    assert stored.diffusion.schedule.name == "elsewhere.mine.Mine"
    # A resumed run may change its sampler, whatever that was.
    other = config_lib.complete(given | {"sample": {}})
    stored = config_lib.read(tmp_path / "config.json", trusted=other)
    assert config_lib.differences(stored, other) == []


def test_config_json_goes_round(tmp_path):
    config = config_lib.complete(tiny.config(train=dict(ema=(0.5, 0.9999))))
    config_lib.save(config, tmp_path / "config.json")
    found = config_lib.read(tmp_path / "config.json")
    assert found.to_dict() == config.to_dict()
    assert found.train.ema == (0.5, 0.9999)  # a list in JSON
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    overrides = ["--config.sample.steps=3"]
    assert config_lib.read(tmp_path / "config.json", overrides).sample.steps == 3


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "3", '"text"', "\0\1"])
def test_a_garbled_config_json_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    assert refused(config_lib.read, path).startswith(f"{path}: not found")
    path.write_text(text)
    assert refused(config_lib.read, path).startswith(f"{path}: not a valid config")


def test_differences_are_those_that_change_what_is_learned():
    old = config_lib.complete(tiny.config())
    free = ["train.steps=99", "train.accumulate=2", "sample.steps=9", "log.every=1",
            "checkpoint.keep=1", "parallel.fsdp=2", "evaluate.images=9", "model.dtype=bfloat16",
            "model.attention=pallas",
            "sample.sampler.name=ddim"]  # fmt: skip
    new = config_lib.complete(tiny.config(), [f"--config.{change}" for change in free])
    assert config_lib.differences(old, new) == []
    learned = ["seed=1", "train.batch=16", "model.width=32", "diffusion.schedule.name=EDM"]
    new = config_lib.complete(tiny.config(), [f"--config.{change}" for change in learned])
    lines = config_lib.differences(old, new)
    assert {"seed: 0 -> 1", "train.batch: 8 -> 16", "model.width: 16 -> 32"} <= set(lines)
    assert "diffusion.schedule.name: 'RectifiedFlow' -> 'EDM'" in lines
    keys = [line.partition(":")[0] for line in lines]
    assert all(k.startswith(("seed", "train.batch", "model.width", "diffusion.s")) for k in keys)


def test_where_the_data_lie_may_change():
    """On another machine; what is in the images may not."""
    old = config_lib.complete(dict(data=dict(name="fashion_mnist")))
    free = ["data.data_dir=/elsewhere", "data.cache=True"]
    new = config_lib.complete(old, [f"--config.{change}" for change in free])
    assert config_lib.differences(old, new) == []
    new = config_lib.complete(old, ["--config.data.flip=True"])
    assert config_lib.differences(old, new) == ["data.flip: False -> True"]


def test_config_files(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def get_config(variant='small'):\n"
        "    width = {'small': 8, 'large': 64}[variant]\n"
        "    return dict(model=dict(width=width))\n"
    )
    assert config_lib.load(f"{path}").model.width == 8
    assert config_lib.load(f"{path}:large").model.width == 64
    assert config_lib.load(f"{path}:large", ["--config.model.width=4"]).model.width == 4
    assert "'huge'" in refused(config_lib.load, f"{path}:huge")
    missing = tmp_path / "none.py"
    assert refused(config_lib.load, f"{missing}") == f"--config: there is no file {missing}"
    path.write_text("x = 1\n")
    assert refused(config_lib.load, f"{path}").endswith("defines no get_config()")
    path.write_text("def get_config():\n    return dict()\n")
    assert "get_config() takes 0 positional arguments" in refused(config_lib.load, f"{path}:large")
    path.write_text("from ml_collections import ConfigDict\n"
                    "def get_config():\n    return ConfigDict(dict(seed=4))\n")  # fmt: skip
    assert config_lib.load(f"{path}").seed == 4


def test_a_config_that_is_not_here_comes_with_the_package(tmp_path, monkeypatch):
    """So that the README's command runs in any folder; a file of that name here goes before."""
    monkeypatch.chdir(tmp_path)
    shipped = config_lib.load("configs/digits.py")
    assert shipped == config_lib.load(str(tiny.REPOSITORY / "configs" / "digits.py"))
    assert config_lib.load("configs/imagenet.py:small").data.name == "imagenet"
    (tmp_path / "configs").mkdir()
    tiny.write(tmp_path / "configs" / "digits.py", train=dict(steps=7))
    assert config_lib.load("configs/digits.py").train.steps == 7


@pytest.mark.parametrize("file", sorted(tiny.REPOSITORY.glob("configs/*.py")), ids=lambda p: p.stem)
def test_the_configs_of_the_repository_are_complete(file):
    assert isinstance(config_lib.load(str(file)), ConfigDict)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(train=dict(steps=0)), "config.train.steps: 0 is less than 1"),
        (dict(train=dict(ema=())), "config.train.ema: empty; name at least one decay"),
        (dict(train=dict(ema=(1.0,))), "config.train.ema: 1.0 is not in [0, 1)"),
        (dict(train=dict(ema=("a",))), "config.train.ema: 'a' is not a number"),
        (dict(sample=dict(ema=0.5)), "config.sample.ema: 0.5 is not one of config.train.ema (0.99"),
        (dict(optimizer=dict(decay="linear")), "config.optimizer.decay: 'linear' is not one of"),
        (dict(parallel=dict(compiler="gcc")), "config.parallel.compiler: 'gcc' is not one of jit"),
        (dict(parallel=dict(compiler="pmap", fsdp=2)), "config.parallel.fsdp: pmap replicates"),
        (dict(parallel=dict(compiler="pmap", zero1=True)), "config.parallel.zero1: pmap replicate"),
        (dict(parallel=dict(zero1=True, fsdp=2)), "config.parallel.zero1: fsdp already shards"),
        (dict(train=dict(gradient_dtype="half")), "config.train.gradient_dtype: 'half' is not"),
        (dict(train=dict(gradient_dtype="bfloat16")), "config.train.gradient_dtype: bfloat16 need"),
        (dict(parallel=dict(fsdp=2)), "config.parallel.fsdp: 2 does not divide the 1 devices"),
        (dict(diffusion=dict(label_dropout=1.5)), "config.diffusion.label_dropout: 1.5 is not in"),
        (dict(diffusion=dict(prediction="y")), "config.diffusion.prediction: 'y' is not one of"),
        (dict(model=dict(size="XXL")), "config.model.size: 'XXL' is not one of S, B, L, H"),
        (dict(log=dict(heldout_images=0)), "config.log.heldout_images: 0 is less than 1"),
        (dict(log=dict(nearest_every=-1)), "config.log.nearest_every: -1 is less than 0"),
        (dict(data=dict(heldout=0.0)), "config.data.heldout: 0.0 is not between 0 and 1"),
    ],
    ids=str,
)
def test_values_that_cannot_run_are_refused_before_anything_is_written(tmp_path, changes, message):
    given = tiny.config(**changes)
    assert refused(loop.train, given, tmp_path / "run").startswith(message)
    assert list(tmp_path.iterdir()) == []
