"""What is wrong is said at the door: one line, and no byte of a workdir has changed."""

import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import vitdiff_jax
from tests import tiny
from tests.runtime.test_lock import HOLD
from vitdiff_jax import main
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.modes import report
from vitdiff_jax.runtime import lock, paths
from vitdiff_jax.training import finetune, loop, program

pytestmark = pytest.mark.usefixtures("plain")


def pictures(path, classes, count=12):
    """A folder of pictures in classes."""
    random = np.random.default_rng(0)
    for name in classes:
        (path / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(path / name / f"{i}.png")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, plain):
    """(config flag, folder of pictures, workdir) of a run of two steps on cats and dogs."""
    home = tmp_path_factory.mktemp("doors")
    folder = pictures(home / "animals", ["cat", "dog"])
    data = dict(name="folder", path=str(folder), size=8, channels=1, heldout=0.2)
    config = tiny.write(
        home / "tiny.py", model=tiny.PLAIN, data=data, train=dict(steps=2, batch=4),
        checkpoint=dict(every=2), log=dict(every=1),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.setattr(report, "at_end", lambda workdir: None)
        assert tiny.call(config, f"--workdir={home / 'run'}") == 0
    return config, folder, home / "run"


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of the workdir, for one test; its commands write no report."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(trained[1].parent / "cache"))
    monkeypatch.setattr(report, "at_end", lambda workdir: None)
    return shutil.copytree(trained[2], tmp_path / "run")


@pytest.fixture
def refused(capsys):
    """A function of flags: the one line that the command says, and its exit code."""

    def call(*flags):
        capsys.readouterr()
        code = tiny.call(*flags)
        error = capsys.readouterr().err
        assert code
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error.removeprefix("error: ").rstrip("\n"), code

    return call


# Everything is checked before anything is written.


def test_other_data_by_mistake_change_nothing(trained, run, refused, tmp_path):
    """And the run goes on with its own."""
    other = pictures(tmp_path / "others", ["cat", "dog", "fox"])
    before = tiny.files(run)
    text, code = refused(
        f"--workdir={run}", f"--config.data.path={other}", "--config.train.steps=3"
    )
    assert (text.partition(":")[0], code) == ("config.data", 2)
    assert "use the original dataset or another --workdir" in text
    assert tiny.files(run) == before
    assert tiny.call(f"--workdir={run}", "--config.train.steps=3") == 0


def test_fewer_steps_than_were_trained_are_refused(run, refused):
    before = tiny.files(run)
    text, code = refused(f"--workdir={run}", "--config.train.steps=1")
    assert (text, code) == (
        f"config.train.steps: 1 is less than the 2 steps that {run} was trained for: sample with"
        " --mode=sample, or give more steps", 2,
    )  # fmt: skip
    assert tiny.files(run) == before


def test_as_many_steps_as_were_trained_are_a_finished_run(run, capsys):
    (run / "data.json").write_text('{"mark": "of the data it was trained on"}')
    assert tiny.call(f"--workdir={run}") == 0
    assert "already trained for 2 steps" in capsys.readouterr().out
    assert (run / "data.json").read_text() == '{"mark": "of the data it was trained on"}'


def test_a_damaged_checkpoint_stays_where_it_is_if_the_run_is_refused(run, refused):
    (file,) = (run / "checkpoints" / "2" / "meta").glob("metadata")
    file.write_text("{}")
    before = tiny.files(run)
    text, _ = refused(f"--workdir={run}", "--config.data.channels=3", "--config.data.classes=False")
    assert "was trained with another config" in text
    assert tiny.files(run) == before


def test_a_source_that_turns_out_damaged_leaves_no_workdir(trained, run, refused, tmp_path):
    """After all that can be seen from outside is right."""
    for step in (run / "checkpoints").iterdir():
        (step / "checksums.json").write_text("{}1")
    flags = [trained[0], f"--workdir={tmp_path / 'a' / 'new'}", f"--config.train.init_from={run}"]
    text, _ = refused(*flags)
    assert "are damaged" in text
    assert not (tmp_path / "a").exists()


# One writer.


def test_a_second_run_is_refused_and_names_the_first(run, refused):
    writer = subprocess.Popen(
        [sys.executable, "-c", HOLD, run], cwd=tiny.REPOSITORY, stdout=subprocess.PIPE
    )
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"held\n"
        before = tiny.files(run)
        text, code = refused(f"--workdir={run}", "--config.train.steps=3")
        assert text.startswith(f"{run}: another run is writing here: process {writer.pid} on ")
        assert code == 1  # not 2: the same command is right later, and launch scripts try it again
        assert tiny.files(run) == before
        assert tiny.call(f"--workdir={run}", "--mode=sample", "--n=1") == 0  # it only reads
    finally:
        writer.kill()
        writer.communicate()
    assert (run / lock.FILE).exists()
    assert tiny.call(f"--workdir={run}", "--config.train.steps=3") == 0
    assert not (run / lock.FILE).exists()


def test_two_evaluations_in_one_workdir(run, refused):
    """They would share the files from which an interrupted one goes on."""
    from etils import epath

    with lock.hold(epath.Path(run / "evaluation"), None):
        text, code = refused(f"--workdir={run}", "--mode=evaluate")
    assert text.startswith(f"{run / 'evaluation'}: another run is writing here: process ")
    assert code == 1
    assert not (run / "evaluation").exists()


def test_training_cleans_up_after_killed_writers(run):
    left = [run / "config.json.99-0123abcd.partial", run / "samples" / "a.png.99-0123abcd.partial"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (0, 0))
    assert tiny.call(f"--workdir={run}") == 0
    assert not any(path.exists() for path in left)


# What a resumed run may change.


def test_the_advice_for_a_run_that_diverged_can_be_followed(run, capsys):
    with pytest.raises(loop.TrainingError) as caught:
        loop.Run._check_finite(_config(run), 9, {"bad_steps": 99})  # type: ignore
    assert "both may change in the same workdir" in str(caught.value)
    changes = ["learning_rate=1e-5", "clip=0"]
    flags = ["--config.train.steps=3", *(f"--config.optimizer.{change}" for change in changes)]
    assert tiny.call(f"--workdir={run}", *flags) == 0
    out = capsys.readouterr().out
    assert "changed from here on: config.optimizer.clip: 1.0 -> 0.0\n" in out
    assert "changed from here on: config.optimizer.learning_rate: 0.001 -> 1e-05\n" in out
    assert "resuming at step 2 of 3" in out


@pytest.mark.parametrize(
    "change", [dict(clip=0.0), dict(weight_decay=0.1), dict(b1=0.0), dict(warmup=0),
               dict(decay="cosine"), dict(eps=1.0)],
)  # fmt: skip
def test_no_array_of_the_state_depends_on_the_optimisers_options(change):
    def shapes(config):
        optimizer, _ = program._optimizer(config_lib.complete(config))
        params = {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)}
        return jax.tree_util.tree_flatten_with_path(jax.eval_shape(optimizer.init, params))

    assert shapes(tiny.config(optimizer=change)) == shapes(tiny.config())


def _config(run):
    class Given:
        config = config_lib.read(run / "config.json")

    return Given


# Fine-tuning.


def starts(tmp_path, source, target):
    """The check of train.init_from with these models."""
    tiny.save(tmp_path / "source", tiny.config(model=source))
    given = tiny.config(model=target, train=dict(init_from=str(tmp_path / "source")))
    finetune.check(config_lib.complete(given), paths.resolve(tmp_path / "new"))


@pytest.mark.parametrize(
    ("source", "target", "key"),
    [
        (dict(heads=2), dict(heads=4), "heads"),
        (dict(heads=4), dict(size="S", heads=2), "heads"),
        pytest.param(
            dict(name="unet", width=8, multipliers=(1, 1), attention=(1,), head_width=8),
            dict(name="unet", width=8, multipliers=(1, 1), attention=(1,), head_width=4),
            "head_width",
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_weights_of_other_heads_are_refused(tmp_path, source, target, key):
    message = f"was trained with {source[key]} {key}, not {target[key]}, and its attention weights"
    with pytest.raises(config_lib.ConfigError, match=message):
        starts(tmp_path, source, target)


def test_the_heads_of_a_named_size_count(tmp_path):
    """S has six heads, whether they are named or not."""
    small = dict(size="S", width=None, depth=1, heads=None, bottleneck=4)
    starts(tmp_path, small, small | dict(heads=6))
    with pytest.raises(config_lib.ConfigError, match="was trained with 6 heads, not 12"):
        starts(tmp_path, small, small | dict(heads=12))


def test_weights_of_another_width_are_new_anyway(tmp_path):
    starts(tmp_path, dict(heads=2), dict(heads=4, width=32))
    starts(tmp_path, dict(heads=2), dict(name="dit", patch=4, width=32, depth=1, heads=4))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(model=dict(class_tokens_from=0)), "model.class_tokens_from: 1 -> 0"),
        (dict(model=dict(patch=2)), "model.patch: 4 -> 2"),
        (dict(diffusion=dict(prediction="v")), "diffusion.prediction: 'x' -> 'v'"),
        (dict(diffusion=dict(floor=0.05)), "diffusion.floor: 0.0 -> 0.05"),
        (
            dict(model=dict(name="uvit", patch=4, width=16, depth=2, heads=2)),
            "model.name: 'vit' ->",
        ),
        (dict(model=dict(dropout=0.1, remat="full", scan=True, dtype="bfloat16")), ""),
        (dict(optimizer=dict(clip=0.0)), ""),
    ],
    ids=str,
)
def test_what_gives_parameters_another_meaning_is_said(changes, said, capsys):
    old, new = (config_lib.complete(tiny.config(**change)) for change in ({}, changes))
    finetune._compare(old, new)
    out = capsys.readouterr().out
    assert said in out
    assert out.startswith("warning: the source was trained with other settings: " if said else "")
    assert bool(said) == bool(out)


# The command line.


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdr=x"], "--workdr: no such flag; did you mean --workdir?"),
        (["--mode=sample", "--lable=3"], "--lable: no such flag; did you mean --label?"),
        (["--mode=sample", "--lables", "3"], "--lables: no such flag; did you mean --label?"),
        (["--mode=trian"], "--mode: 'trian' is not one of train, sample, "),
        (["--mode=Sample"], "; did you mean --mode=sample?"),
        (["train"], "train: write --mode=train"),
        (["trian"], "trian: not understood; flags are written as --name=value; did you mean --mod"),
        (["configs/digits.py"], "configs/digits.py: write --config=configs/digits.py"),
        (["configs/folder.py:small"], "configs/folder.py:small: write --config="),
        (["-mode=sample"], "-mode=sample: write --mode"),
        (["--n=4"], "--n: belongs to --mode=sample, restore, statistics, not to --mode=train"),
        (["--mode=sample", "--profile=1:2"], "--profile: belongs to --mode=train, not to --mode=s"),
        (["--mode=plan", "--price-per-chip-hour=1"], "--price-per-chip-hour=1: write --price_per_"),
        (["--mode=sample", "--seed=1.5"], "--seed: '1.5' is not an integer"),
        (["--mode=sample", "--seed=-1"], "--seed: -1 is less than 0"),
        (["--mode=sample", "--seed=4294967296"], "--seed: 4294967296 is more than 4294967295"),
        (["--mode=restore", "--seed=9223372036854775808"], "--seed: 9223372036854775808 is more"),
        (["--mode=sample", "--seed=4294967295", "--n=2"], "--seed: 4294967295 and the seeds of 2 "),
        (["--mode=sample", "--npz=True"], "--npz: takes no value; leave out ='True'"),
        (["--mode=sample", "--n"], "--n: expected one argument"),
        (["--mode=restore", "--strength=nan"], "--strength: nan is not a finite number"),
        (["--mode=restore", "--strength=1.5"], "--strength: 1.5 is not in (0, 1)"),
        (["--mode=restore", "--noise=x"], "--noise: 'x' is not a number"),
        (["--processes=0", "--process=0", "--coordinator=x:1"], "--processes: 0 is less than 1"),
        (["--processes=2", "--process=0", "--coordinator=x"], "--coordinator: 'x' is not of the f"),
        (["--processes=2", "--process=0", "--coordinator=x:99999"], "--coordinator: 'x:99999' is "),
        (["--processes=2", "--process=0", "--coordinator=:1"], "--coordinator: ':1' is not of the"),
        (["--workdir="], "--workdir: is empty"),
        (["--config="], "--config: is empty"),
        (["--mode=restore", "--input="], "--input: is empty"),
        (["--config=digits"], "--config: there is no file digits; did you mean configs/digits.py?"),
        (["--config=configs/digit.py"], "; did you mean configs/digits.py?"),
        (["--config=configs/zzz.py"], "--config: there is no file configs/zzz.py"),
        (["--config.train.stepz=3"], "config.train.stepz: no such key; did you mean config.train."),
        (["--train.steps=3"], "train.steps: no such key; did you mean config.train.steps?"),
        (["--config.train.steps=None"], "config.train.steps: None is not an integer"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_flag_is_one_line_that_helps(tmp_path, monkeypatch, refused, flags, message):
    monkeypatch.chdir(tmp_path)
    config = (
        []
        if any(flag.startswith("--config=") for flag in flags)
        else ["--config=configs/digits.py"]
    )
    text, code = refused(*config, *flags)
    assert message in text
    assert text.startswith(message) or message.startswith(";")
    assert code == 2
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("mode", "key", "used"),
    [
        ("sample", "train.steps=9", False),
        ("sample", "optimizer.clip=0.5", False),
        ("sample", "sample.steps=3", True),
        ("sample", "model.dtype=bfloat16", True),
        ("sample", "evaluate.images=3", False),
        ("restore", "sample.steps=3", False),
        ("restore", "sample.sampler.name=ddim", False),
        ("restore", "restore.steps=3", True),
        ("restore", "sample.guidance=2.0", True),
        ("restore", "sample.grid.name=linear", True),
        ("evaluate", "optimizer.learning_rate=1.0", False),
        ("evaluate", "sample.sampler.name=ddim", True),
        ("statistics", "model.width=3", False),
        ("statistics", "data.path=x", True),
        ("prepare", "train.steps=3", False),
        ("plan", "sample.steps=3", False),
        ("plan", "train.batch=8", True),
        ("train", "restore.steps=3", True),  # config.json keeps it
        ("export", "sample.ema=0.9", True),
    ],
)
def test_a_key_that_a_mode_does_not_use_is_said(mode, key, used):
    from vitdiff_jax.experiment import usage

    name = f"config.{key.partition('=')[0]}"
    line = usage.unused(mode, [f"--config.{key}", "--config.data.name=digits"], {})
    assert line == (None if used else f"warning: --mode={mode} does not use {name}")


def test_the_command_says_it(run, capsys):
    flags = ["--config.train.steps=9", "--config.log.every=2"]
    assert tiny.call(f"--workdir={run}", "--mode=sample", "--n=1", *flags) == 0
    line = "warning: --mode=sample does not use config.train.steps, config.log.every\n"
    assert line in capsys.readouterr().out


def test_every_mode_is_in_the_table_or_takes_all_or_none():
    from vitdiff_jax.experiment import usage

    assert set(main.MODES) - set(usage.USES) == {"train", "export", "import", "report"}


# Config files.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "{file} defines no get_config()"),
        ("get_config = 3\n", "{file} defines no get_config()"),
        ("def get_config():\n    dict(seed=1)\n", "get_config() of {file} returns None, not a dic"),
        ("def get_config():\n    return dict(seed=1),\n", "get_config() of {file} returns ({{'see"),
        ("def get_config():\n    return 1 / 0\n", "{file}, line 2: ZeroDivisionError: division by"),
        ("def get_config():\n    return {{}}['a']\n", "{file}, line 2: KeyError: 'a'"),
        ("def get_config():\n    return dict(seed=sed)\n", "{file}, line 2: NameError: name 'sed'"),
        ("import no_such_module\n", "{file}, line 1: ModuleNotFoundError: No module named 'no_suc"),
        ("\ndef get_config(:\n", "{file}, line 2: SyntaxError: "),
        ("\n\nraise RuntimeError('two\\nlines')\n", "{file}, line 3: RuntimeError: two lines"),
        ("import json\ndef get_config():\n    return json.loads('')\n", "{file}, line 3: JSONDeco"),
        ("import sys\nsys.exit('no')\n", "{file}, line 2: SystemExit: no"),
        ("def get_config(variant):\n    return {{}}\n", "{file}: TypeError: get_config() missing "),
        ("def get_config():\n    return dict(train=dict(steps=None))\n", "config.train.steps: Non"),
        ("def get_config():\n    return dict(train=dict(steps=1e3))\n", "config.train.steps: 1000"),
        ("def get_config():\n    return dict(train=None)\n", "config.train: None is not a section"),
        ("def get_config():\n    return dict(train=[1])\n", "config.train: (1,) is not a section"),
        ("def get_config():\n    return {{3: 4}}\n", "config.3: no such key"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_config_file_is_one_line(tmp_path, refused, text, message):
    file = tmp_path / "mine.py"
    file.write_text(text.replace("{{", "{").replace("}}", "}"))
    found, code = refused(f"--config={file}", f"--workdir={tmp_path / 'run'}")
    assert found.removeprefix("--config: ").startswith(message.format(file=file))
    assert code == 2
    assert os.listdir(tmp_path) == ["mine.py"]


def test_home_folders_in_flags_and_keys(tmp_path, monkeypatch, refused):
    monkeypatch.setenv("HOME", str(tmp_path))
    text, _ = refused("--workdir=~/runs/x")
    assert text.startswith(f"{tmp_path}/runs/x/config.json: not found")
    text, _ = refused("--config=~/mine.py")
    assert text.startswith("--config: there is no file ~/mine.py")
    tiny.write(tmp_path / "mine.py", train=dict(init_from="~/none"))
    text, _ = refused("--config=~/mine.py", "--workdir=~/runs/x")
    assert text.startswith(f"config.train.init_from: {tmp_path}/none/config.json: not found")
    text, _ = refused("--mode=prepare", "--config=configs/digits.py", "--manual=~/none")
    assert text == f"--manual: there is no folder {tmp_path}/none"
    with pytest.raises(config_lib.ConfigError, match=f"{tmp_path}/runs/x/config.json: not found"):
        vitdiff_jax.load("~/runs/x")
