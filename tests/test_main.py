"""The command from outside: what it leaves, what it says, and that bad input is one line."""

import json
import re
import runpy
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

import vitdiff_jax
from tests import tiny
from tests.data import homes
from vitdiff_jax import main
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.interop import sheets
from vitdiff_jax.modes import report
from vitdiff_jax.training import summary

LOG = dict(
    every=10, sample_every=15, heldout_every=15, heldout_images=16, heldout_levels=2, images=4,
    evaluate_every=15, evaluate_images=4,
)  # fmt: skip
pytestmark = pytest.mark.usefixtures("plain", "no_plots")


@pytest.fixture(scope="module")
def config(tmp_path_factory, plain):
    return tiny.write(
        tmp_path_factory.mktemp("config") / "tiny.py", model=tiny.PLAIN, log=LOG,
        diffusion=tiny.UNIFORM, optimizer=dict(learning_rate=1e-2, warmup=0),
        evaluate=dict(metrics=("pixel_frechet",)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """The --config flag of a ViT, which is not trained in the quick tier."""
    return tiny.write(tmp_path_factory.mktemp("config") / "tiny.py", log=LOG)


@pytest.fixture(scope="module")
def begun(tmp_path_factory, config, no_plots):
    """(workdir, what the command said) after one step."""
    workdir = tmp_path_factory.mktemp("runs") / "not" / "yet" / "there"
    off = [f"--config.log.{name}_every=0" for name in ("sample", "heldout", "evaluate")]
    flags = [config, f"--workdir={workdir}", "--config.train.steps=1", "--config.log.every=1"]
    flags += ["--verbose"]
    code, out, error = homes.run(*flags, *off)
    assert (code, error) == (0, None)
    return shutil.copytree(workdir, workdir.parent / "begun"), out


@pytest.fixture(scope="module")
def trained(begun):
    """(workdir, what the command said) of a finished run; config.json says how it goes on."""
    workdir = begun[0].parent / "there"
    more = [f"--config.log.{name}={value}" for name, value in LOG.items()]
    code, out, error = homes.run(f"--workdir={workdir}", "--config.train.steps=30", *more)
    assert (code, error) == (0, None)
    return workdir, out


@pytest.fixture(scope="module")
def model(trained):
    return vitdiff_jax.load(trained[0])


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of the finished run but for its curves, to be changed by one test."""
    ignored = shutil.ignore_patterns("metrics.jsonl", "events*")
    return shutil.copytree(trained[0], tmp_path / "run", ignore=ignored)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def drawn(workdir, *flags):
    """The images of --mode=sample --npz."""
    before = set((workdir / "samples").glob("*.npz"))
    assert tiny.call(f"--workdir={workdir}", "--mode=sample", "--npz", *flags) == 0
    (path,) = set((workdir / "samples").glob("*.npz")) - before
    with np.load(path) as file:
        assert file.files == ["arr_0"]
        return file["arr_0"]


def assert_close(images, others):
    """Within one grey level: other batch shapes round differently."""
    assert images.dtype == others.dtype == np.uint8
    assert images.shape == others.shape
    assert np.abs(images.astype(int) - others.astype(int)).max() <= 1


def test_a_run_says_what_it_does_in_plain_lines(begun):
    workdir, out = begun
    there, said = workdir.parent / "there", out.splitlines()
    assert said[0].startswith(f"workdir {there}, compilation cache ")
    assert said[-2] == f"finished at step 1; samples in {there / 'samples'}"
    assert said[-1] == f"report in {there / 'report.html'}"
    assert "\r" not in out  # no progress bar where there is no terminal
    assert "warning" not in out.lower()  # all of this is normal
    assert "Total: 2,320" in out  # by --verbose, a table of the parameters
    assert "in/kernel" in out


def test_from_python(begun):
    model = vitdiff_jax.load(begun[0])
    four, two = (model.sample(label=3, n=n, seed=0) for n in (4, 2))
    assert four.shape == (4, 8, 8, 1)
    assert_close(four[:2], two)
    assert_close(model.sample(label=[1, 3], n=2, seed=0)[1:], four[1:2])
    without = model.sample(label=-1, n=2, seed=0)
    assert np.any(without != two)
    # One step of Euler from noise to data lands on the estimate of x itself.
    assert np.any(model.sample(label=3, n=2, seed=0, steps=1) != two)
    assert np.any(model.sample(label=3, n=2, seed=0, guidance=3.0) != two)
    for wrong in (10, -2, [0, 10]):
        with pytest.raises(ValueError, match=r"label: .* is not in -1"):
            model.sample(label=wrong, n=2)
    with pytest.raises(ValueError, match="strides: not an option"):
        model.sample(strides=3)


def test_the_first_screen_names_data_model_devices_and_results(trained):
    """A line each; of the parameters their number (and 2 x 2,064 operations), not a table."""
    workdir, out = trained
    first = out.splitlines()[:6]
    parameters = 11 * 16 + 65 * 16 + 16 + 16 * 64 + 64
    assert first[1:5] == [
        "data: scikit-learn's digits (1,258 images, 539 held out); 8x8x1,"
        " conditions: label (10 classes)",
        f"model: plain, {parameters:,} parameters, 0.00413 MFLOPs per image",
        "devices: 1 x cpu; jit, no sharding",
        "training: 30 steps of 8 images; samples, metrics, checkpoints and report.html in"
        f" {workdir}",
    ]
    assert first[5].startswith("resuming at step 1 of 30")


def test_the_summary_of_a_vision_transformer():
    """Its parameters, from its paper's layers, and 2 x 41,536 operations."""
    attention = 4 * (16 * 16 + 16) + 2 * 8
    feed_forward = 16 * 84 + 84 + 42 * 16 + 16  # SwiGLU
    block = attention + feed_forward + 16 * 96 + 96 + 2 * 16
    patches = 16 * 4 + 4 * 16 + 16 + 2 * 16  # the bottleneck; positions of the class tokens
    conditions = 11 * 16 + 256 * 16 + 16 + 16 * 16 + 16  # classes and none; time
    parameters = 2 * block + patches + conditions + 16 + 16 * 32 + 32 + 16 * 16 + 16  # and the head
    config = config_lib.complete(tiny.config())
    experiment = experiment_lib.build(config, (8, 8, 1), {"label": tiny.DIGITS})
    assert summary.model(experiment) == (
        f"vit (width 16, depth 2, patch 4), {parameters:,} parameters, 0.0831 MFLOPs per image,"
        " float32"
    )


def test_a_finished_run_goes_on_with_more_steps(trained, model):
    """Without --config too: what is learned stays as config.json says."""
    workdir, out = trained
    assert "resuming at step 1 of 30" in out
    steps = [line.partition("  ")[0] for line in out.splitlines() if "/30  " in line]
    assert steps == ["step 10/30", "step 20/30", "step 30/30"]
    assert [line["step"] for line in lines(workdir) if "loss" in line] == [1, 10, 20, 30]
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 30
    assert model.step == 30


def test_what_a_run_leaves(trained):
    workdir, _ = trained
    names = {path.name for path in workdir.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert len(events) == 2  # of the first step, and of the others
    assert names - events == {
        "config.json", "data.json", "checkpoints", "samples", "metrics.jsonl", "report.html",
        "evaluation",
    }  # fmt: skip
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["10", "20", "30"]
    samples = workdir / "samples"
    sizes = {}
    for path in samples.iterdir():
        with Image.open(path) as picture:
            sizes[path.name] = picture.size
    # Four columns and a row of 8x8 enlarged six times, with gutters of 2; at the end four ways.
    assert sizes == {
        "00000015.png": (4 * 50 + 2, 1 * 50 + 2), "00000030.png": (4 * 50 + 2, 1 * 50 + 2),
        "00000030-n4-frames8.png": (8 * 50 + 2, 4 * 50 + 2),
    }  # fmt: skip
    about = json.loads((workdir / "data.json").read_text())
    assert re.fullmatch("[0-9a-f]{16}", about.pop("mark"))
    counts = np.array(list(about.pop("class_counts").values()))
    assert counts.sum(0).tolist() == [1258, 539]
    assert about == {
        "images": 1258, "heldout": 539, "shape": [8, 8, 1], "classes": 10, "attributes": None
    }  # fmt: skip
    for name, kind in (("00000030", "samples"), ("00000030-n4-frames8", "trajectories")):
        sheet = sheets.read(samples / f"{name}.png")
        assert (sheet.kind, sheet.names) == (kind, ["0", "1", "2", "3"])
        assert sheet.about == {"step": 30, "seed": 0}


def test_metrics(trained):
    workdir, _ = trained
    found = lines(workdir)
    of_training = {line["step"]: line for line in found if "loss" in line and line["step"] > 1}
    of_heldout = {line["step"]: line for line in found if "heldout/loss" in line}
    evaluated = {line["step"]: line for line in found if "evaluation_seconds" in line}
    assert list(of_training) == [10, 20, 30]
    assert list(of_heldout) == list(evaluated) == [15, 30]
    assert len(found) == 8  # none stands there twice, and the first step's
    assert "images_per_second" not in found[0]  # there is no speed of one step
    for line in of_training.values():
        assert line["images_per_second"] == pytest.approx(8 * line["steps_per_second"])
        assert 0 <= line["data_wait_share"] <= 1
        assert line["learning_rate"] == pytest.approx(1e-2)
        assert line["loss"] > 0
        assert line["grad_norm"] > 0
    for line in of_heldout.values():
        levels = {name: value for name, value in line.items() if name.startswith("heldout/t=")}
        assert set(levels) == {"heldout/t=0.250", "heldout/t=0.750"}  # the distribution's quartiles
        assert line["heldout/loss"] == pytest.approx(np.mean(list(levels.values())))
    assert evaluated[30]["fd/pixels/ema0.99/value"] != evaluated[15]["fd/pixels/ema0.99/value"]
    events = b"".join(path.read_bytes() for path in workdir.glob("events*"))
    for name in (b"loss", b"grad_norm", b"images_per_second", b"heldout/loss", b"samples"):
        assert name in events


def test_training_lowers_the_heldout_loss(trained):
    first, last = (line["heldout/loss"] for line in lines(trained[0]) if "heldout/loss" in line)
    assert last < 0.9 * first


def test_a_finished_run_does_nothing(workdir, config, capsys):
    report.write(workdir)  # whose title is the folder's name
    before = tiny.files(workdir)
    assert tiny.call(config, f"--workdir={workdir}") == 0
    assert "already trained for 30 steps (config.train.steps=30): " in capsys.readouterr().out
    assert tiny.files(workdir) == before


def test_the_same_samples_twice(workdir):
    flags = [f"--workdir={workdir}", "--mode=sample", "--n=5", "--seed=3", "--label=0", "--npz"]
    assert tiny.call(*flags) == 0
    stem = workdir / "samples" / "step30-label-0-seed3-n5"
    paths = [stem.with_suffix(".png"), stem.with_suffix(".npz")]
    once = [path.read_bytes() for path in paths]
    with Image.open(paths[0]) as picture:
        assert picture.size == (3 * 50 + 2, 2 * 50 + 2)  # of one class: as square as can be
    for path in paths:
        path.unlink()
    assert tiny.call(*flags) == 0
    assert [path.read_bytes() for path in paths] == once


def test_classes_in_turn(workdir, model):
    """--n=12 without --label goes 0 to 9, 0, 1; the picture has a column for each."""
    mixed = drawn(workdir, "--seed=20", "--n=12")
    assert_close(model.sample(seed=23, n=1, label=3), mixed[3:4])
    assert_close(model.sample(seed=31, n=1, label=1), mixed[11:12])
    with Image.open(workdir / "samples" / "step30-seed20-n12.png") as picture:
        assert picture.size == (10 * 50 + 2, 2 * 50 + 2)


def test_a_config_with_another_sampler_draws_with_that(workdir, config, model):
    found = drawn(workdir, "--n=2", config, "--config.sample.sampler.name=ancestral")
    assert np.any(found != model.sample(n=2))
    assert_close(found, model.sample(n=2, sampler="ancestral"))


@pytest.mark.slow
def test_a_process_of_its_own_trains_and_three_devices_sample(tmp_path, vit):
    """A ViT, without TensorFlow, in batches of 8 on one device; 4 images on three devices."""
    workdir = tmp_path / "run"
    code, out, err = tiny.command(vit, f"--workdir={workdir}", "--config.log.evaluate_every=0")
    assert (code, err) == (0, "")
    assert f"finished at step 30; samples in {workdir / 'samples'}" in out
    first, last = (line["heldout/loss"] for line in lines(workdir) if "heldout/loss" in line)
    assert last < 0.9 * first
    sample = [f"--workdir={workdir}", "--mode=sample", "--n=4", "--npz"]
    code, _, err = tiny.command(*sample, devices=3)
    assert (code, err) == (0, "")
    with np.load(workdir / "samples" / "step30-seed0-n4.npz") as file:
        assert_close(file["arr_0"], vitdiff_jax.load(workdir).sample(n=4))


def test_sampling_leaves_a_training_run_alone(workdir):
    """What that is just writing stays; and the samples come from the newest complete checkpoint."""
    unfinished = workdir / "checkpoints" / "40.orbax-checkpoint-tmp"
    unfinished.mkdir()
    (unfinished / "part").write_text("half")
    before = tiny.files(workdir / "checkpoints")
    assert tiny.call(f"--workdir={workdir}", "--mode=sample", "--n=1") == 0
    assert tiny.files(workdir / "checkpoints") == before


def fails(capsys, *flags):
    """(exit code, message) of a command that must say one line and no more."""
    capsys.readouterr()
    code = tiny.call(*flags)
    captured = capsys.readouterr()
    assert code in (1, 2)
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("error: ")
    assert all(line.startswith("workdir ") for line in captured.out.splitlines())
    return code, captured.err.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.train.stepz=3"], "config.train.stepz: no such key; did you mean config.train."),
        (["--config.model.patch=3"], "config.model.patch: 3 does not divide the 8x8 images"),
        (
            ["--config.train.accumulate=3"],
            "config.train.batch: 8 is not divisible by 1 devices x 3 microbatches",
        ),
        (["--config.diffusion.prediction=eps"], "config.diffusion.prediction: eps does not"),
        (["--n=4"], "--n: belongs to --mode=sample, restore, statistics, not to --mode=train"),
        (["--processes=2"], "--coordinator, --processes, --process: set all or none"),
        (
            ["--coordinator=localhost:1", "--processes=2", "--process=2"],
            "--process: 2 is not in 0 to 1",
        ),
        (["--mode=sample"], "{workdir}: contains no checkpoints; train first with --mode=train"),
        (["--mode=sample", "--n=0"], "--n: 0 is less than 1"),
        (["--mode=evaluate"], "{workdir}: contains no checkpoints; train first with --mode=train"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, vit, capsys, flags, message):
    workdir = tmp_path / "run"
    code, found = fails(capsys, vit, f"--workdir={workdir}", *flags)
    message = message.format(workdir=workdir)
    assert found.startswith(message)
    assert code == (1 if "no checkpoints" in message else 2)
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.model.width=32"], "{workdir} was trained with another config (model.width: "),
        (["--config.train.ema=0.9"], "{workdir} was trained with another config (train.ema: (0.9"),
        (["--config.train.batch=16", "--config.seed=1"], "{workdir} was trained with another con"),
        (["--mode=sample", "--label=10"], "label: 10 is not in -1 (null class) to 9"),
        (["--mode=sample", "--prompt=a cat"], "--prompt: the model is conditioned on label only"),
        (["--mode=sample", "--config.seed=1"], "{workdir} was trained with another config (seed"),
        (["--mode=evaluate", "--config.evaluate.metrics=f"], "config.evaluate.metrics: unknown"),
        (["--mode=evaluate", "--config.evaluate.images=1"], "config.evaluate.images: 1 is less"),
    ],
    ids=str,
)
def test_bad_input_for_a_run_that_is_there_changes_nothing(trained, config, capsys, flags, message):
    workdir, _ = trained
    before = tiny.files(workdir)
    _, found = fails(capsys, config, f"--workdir={workdir}", *flags)
    assert found.startswith(message.format(workdir=workdir))
    if "batch" in flags[0]:
        assert "(seed: 0 -> 1; train.batch: 8 -> 16)" in found  # every value that differs
    assert tiny.files(workdir) == before


def test_digits_need_no_preparation(tmp_path, config, capsys):
    assert tiny.call(config, f"--workdir={tmp_path / 'run'}", "--mode=prepare") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("ready: scikit-learn's digits")
    assert list(tmp_path.iterdir()) == []
    code, found = fails(capsys, config, "--mode=prepare", f"--manual={tmp_path / 'none'}")
    assert (code, found) == (2, f"--manual: there is no folder {tmp_path / 'none'}")


def test_nowhere_to_write(tmp_path, config, capsys):
    """A path below a file: permissions would not stop root."""
    (tmp_path / "file").write_text("mine")
    code, found = fails(capsys, config, f"--workdir={tmp_path / 'file' / 'run'}")
    assert code == 1
    assert found.startswith(str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("mode", ["train", "sample", "evaluate", "statistics", "prepare"])
def test_no_config(tmp_path, capsys, mode):
    code, found = fails(capsys, f"--mode={mode}")
    hint = "; to try a trained model: --workdir=pretrained:digits"
    line = f"--config or --workdir: at least one is required{hint * (mode in main.NEED_MODEL)}"
    assert (code, found) == (2, line)
    path = tmp_path / "none.py"
    code, found = fails(capsys, f"--mode={mode}", f"--config={path}", f"--workdir={tmp_path / 'r'}")
    assert (code, found) == (2, f"--config: there is no file {path}")
    code, found = fails(capsys, f"--mode={mode}", f"--workdir={tmp_path}")
    path = tmp_path / "config.json"
    assert (code, found) == (2, f"{path}: not found; is this the workdir of a training run?")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_mode_is_answered_with_the_known_ones(tmp_path, capsys):
    code, found = fails(capsys, "--mode=dream", f"--workdir={tmp_path / 'run'}")
    assert (code, found) == (2, f"--mode: 'dream' is not one of {', '.join(main.MODES)}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["train", "sample", "statistics", "import", "export"])
def test_help(capsys, mode):
    with pytest.raises(SystemExit) as caught:
        tiny.call(f"--mode={mode}", "--help")
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert "--workdir" in said
    assert ("--label" in said) == (mode == "sample")
    assert ("--family" in said) == (mode in ("import", "export"))


def test_the_default_workdir_is_named_after_the_config(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(f"def get_config(v=''):\n    return {tiny.config()!r}\n")
    for name, place in (("mine.py", "mine"), ("mine.py:large", "mine-large")):
        code, found = fails(capsys, f"--config={name}", "--mode=sample")
        assert (code, found.partition(":")[0]) == (1, f"runs/{place}")


def test_the_program_ends_with_the_commands_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # or it starts itself again
    monkeypatch.setattr(sys, "argv", ["vitdiff_jax.main", f"--workdir={tmp_path / 'run'}"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(main.__file__, run_name="__main__")
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'run' / 'config.json'}: not fou")
