"""The command from outside: what it leaves, what it says, and that bad input is one line."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import vitdiff_jax
from tests import tiny
from vitdiff_jax.modes import report

LOG = dict(
    every=10, sample_every=15, heldout_every=15, heldout_images=16, heldout_levels=2, images=4
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("config") / "tiny.py", log=LOG)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, config):
    """(workdir, what the command said) of a finished run, in a process without TensorFlow."""
    workdir = tmp_path_factory.mktemp("runs") / "not" / "yet" / "there"
    code, out, err = tiny.command(config, f"--workdir={workdir}")
    assert (code, err) == (0, "")
    return workdir, out


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of the finished run, to be changed by one test."""
    return shutil.copytree(trained[0], tmp_path / "run")


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def arrays(workdir, **flags):
    """The images that --mode=sample --npz draws."""
    options = [f"--{name}={value}" for name, value in flags.items()]
    assert tiny.call(f"--workdir={workdir}", "--mode=sample", "--npz", *options) == 0
    (path,) = (workdir / "samples").glob(f"step30*-seed{flags['seed']}-n{flags['n']}.npz")
    with np.load(path) as file:
        assert file.files == ["arr_0"]
        return file["arr_0"]


def assert_close(images, others):
    """Within one grey level: other batch shapes round differently."""
    assert images.dtype == others.dtype == np.uint8
    assert images.shape == others.shape
    assert np.abs(images.astype(int) - others.astype(int)).max() <= 1


def test_a_run_says_what_it_does_in_plain_lines(trained):
    workdir, out = trained
    said = out.splitlines()
    assert said[0].startswith(f"workdir {workdir}, compiled programs in ")
    assert said[-2] == f"finished at step 30; samples in {workdir / 'samples'}"
    assert said[-1] == f"report in {workdir / 'report.html'}"
    steps = [line.partition("  ")[0] for line in said if line.startswith("step ")]
    assert steps == ["step 10/30", "step 20/30", "step 30/30"]
    assert "\r" not in out  # no progress bar where there is no terminal
    assert any(line.startswith("Total: ") for line in said)  # the table of parameters


def test_what_a_run_leaves(trained):
    workdir, _ = trained
    names = {path.name for path in workdir.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    assert names - events == {
        "config.json", "checkpoints", "samples", "metrics.jsonl", "report.html"
    }  # fmt: skip
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["10", "20", "30"]
    samples = workdir / "samples"
    sizes = {}
    for path in samples.iterdir():
        with Image.open(path) as picture:
            sizes[path.name] = picture.size
    # Ten columns and a row of 8x8 enlarged six times, with gutters of 2; at the end four ways.
    assert sizes == {
        "00000015.png": (10 * 50 + 2, 1 * 50 + 2), "00000030.png": (10 * 50 + 2, 1 * 50 + 2),
        "00000030-n4-frames8.png": (8 * 50 + 2, 4 * 50 + 2),
    }  # fmt: skip


def test_the_way_from_noise_ends_in_the_samples(trained):
    """The same seeds and classes: the last frames are the first images of the last grid."""
    samples = trained[0] / "samples"
    grid, ways = (
        np.asarray(Image.open(samples / name)).astype(int)
        for name in ("00000030.png", "00000030-n4-frames8.png")
    )
    for i in range(4):
        image = grid[2:50, 50 * i + 2 : 50 * i + 50]
        last = ways[50 * i + 2 : 50 * i + 50, -50:-2]
        assert abs(image - last).max() <= 1
        assert abs(image - ways[50 * i + 2 : 50 * i + 50, 2:50]).max() > 50  # noise


def test_metrics(trained):
    workdir, _ = trained
    found = lines(workdir)
    of_training = {line["step"]: line for line in found if "loss" in line}
    of_heldout = {line["step"]: line for line in found if "heldout/loss" in line}
    assert list(of_training) == [10, 20, 30]
    assert list(of_heldout) == [15, 30]
    assert len(found) == 5  # none stands there twice
    for line in of_training.values():
        assert line["images_per_second"] == pytest.approx(8 * line["steps_per_second"])
        assert 0 <= line["data_wait_share"] <= 1
        assert line["learning_rate"] == pytest.approx(1e-3)
        assert line["loss"] > 0
        assert line["grad_norm"] > 0
    for line in of_heldout.values():
        levels = {name: value for name, value in line.items() if name.startswith("heldout/t=")}
        # The distribution's quartiles: sigmoid of -+0.6745, the normal's.
        assert set(levels) == {"heldout/t=0.337", "heldout/t=0.663"}
        assert line["heldout/loss"] == pytest.approx(np.mean(list(levels.values())))
    events = next(workdir.glob("events*")).read_bytes()
    for name in (b"loss", b"grad_norm", b"images_per_second", b"heldout/loss", b"samples"):
        assert name in events


def test_training_lowers_the_heldout_loss(trained):
    first, last = (line["heldout/loss"] for line in lines(trained[0]) if "heldout/loss" in line)
    assert last < 0.9 * first


def test_a_finished_run_does_nothing(workdir, config, capsys):
    report.write(workdir)  # whose title is the folder's name
    before = tiny.files(workdir)
    assert tiny.call(config, f"--workdir={workdir}") == 0
    assert "finished already, at step 30: " in capsys.readouterr().out
    assert tiny.files(workdir) == before


def test_a_finished_run_goes_on_with_more_steps(workdir, capsys):
    """Without --config too: what is learned stays as config.json says."""
    assert tiny.call(f"--workdir={workdir}", "--config.train.steps=35") == 0
    captured = capsys.readouterr()
    assert "resuming at step 30 of 35" in captured.out
    assert captured.err == ""
    assert [line["step"] for line in lines(workdir) if "loss" in line] == [10, 20, 30, 35]
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 35
    model = vitdiff_jax.load(workdir)
    assert model.step == 35


def test_one_step_alone_can_be_logged(tmp_path):
    """There is no speed to tell yet, and nothing to divide by."""
    config = tiny.write(tmp_path / "tiny.py", train=dict(steps=1), log=dict(every=1))
    assert tiny.call(config, f"--workdir={tmp_path / 'run'}") == 0
    (line,) = lines(tmp_path / "run")
    assert line["step"] == 1
    assert "images_per_second" not in line


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


def test_an_image_follows_from_its_seed(workdir):
    four = arrays(workdir, seed=0, n=4, label=7)
    assert four.shape == (4, 8, 8, 1)
    assert len({image.tobytes() for image in four}) == 4
    for i in range(1, 4):
        assert_close(arrays(workdir, seed=i, n=1, label=7), four[i : i + 1])


def test_classes_in_turn(workdir):
    """--n=12 without --label goes 0 to 9, 0, 1; the picture has a column for each."""
    mixed = arrays(workdir, seed=20, n=12)
    assert_close(arrays(workdir, seed=23, n=1, label=3), mixed[3:4])
    assert_close(arrays(workdir, seed=31, n=1, label=1), mixed[11:12])
    with Image.open(workdir / "samples" / "step30-seed20-n12.png") as picture:
        assert picture.size == (10 * 50 + 2, 2 * 50 + 2)


def test_from_python(trained):
    model = vitdiff_jax.load(trained[0])
    five, two = (model.sample(label=3, n=n, seed=0) for n in (5, 2))
    assert five.shape == (5, 8, 8, 1)
    assert_close(five[:2], two)
    assert_close(model.sample(label=[1, 3], n=2, seed=0)[1:], five[1:2])
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


def test_a_config_with_another_sampler_draws_with_that(workdir, config):
    flags = [f"--workdir={workdir}", "--mode=sample", "--n=2", "--npz", config]
    assert tiny.call(*flags) == 0
    path = workdir / "samples" / "step30-seed0-n2.npz"
    plain = np.load(path)["arr_0"]
    assert tiny.call(*flags, "--config.sample.sampler.name=ancestral") == 0
    assert np.any(np.load(path)["arr_0"] != plain)


def test_more_devices_than_the_batch_divides_by_can_sample(workdir):
    """Trained with batches of 8 on one device, drawn from on three."""
    one = arrays(workdir, seed=0, n=4)
    path = workdir / "samples" / "step30-seed0-n4.npz"
    path.unlink()
    flags = [f"--workdir={workdir}", "--mode=sample", "--n=4", "--npz"]
    code, _, err = tiny.command(*flags, devices=3)
    assert (code, err) == (0, "")
    assert_close(np.load(path)["arr_0"], one)


def test_sampling_leaves_a_training_run_alone(workdir):
    """What that is just writing stays; and the samples come from the newest complete checkpoint."""
    unfinished = workdir / "checkpoints" / "40.orbax-checkpoint-tmp"
    unfinished.mkdir()
    (unfinished / "part").write_text("half")
    before = tiny.files(workdir / "checkpoints")
    assert tiny.call(f"--workdir={workdir}", "--mode=sample", "--n=1") == 0
    assert tiny.files(workdir / "checkpoints") == before


def test_evaluate(workdir, capsys):
    """More of it is in `test_evaluate`."""
    flags = [f"--workdir={workdir}", "--mode=evaluate", "--config.evaluate.images=80"]
    metrics = "--config.evaluate.metrics=('class_accuracy','pixel_frechet')"
    assert tiny.call(*flags, metrics) == 0
    said = capsys.readouterr().out
    report = json.loads((workdir / "evaluation.json").read_text())
    assert (report["step"], report["images"]) == (30, 80)
    assert report["evaluate"]["metrics"] == ["class_accuracy", "pixel_frechet"]
    (row,) = report["rows"]
    assert (row["ema"], row["sampler"], row["steps"]) == (0.99, "euler", 2)
    assert list(row["results"]) == ["class_accuracy/svc", "fd/pixels"]
    for values in row["results"].values():
        assert f"{values['value']:.4f}" in said
    assert 0 <= row["results"]["class_accuracy/svc"]["value"] <= 1
    floor = report["real_images"]["results"]["fd/pixels"]["value"]
    assert row["results"]["fd/pixels"]["value"] > floor
    assert tiny.call(*flags, metrics) == 0
    again = json.loads((workdir / "evaluation.json").read_text())
    assert again["rows"][0]["results"] == row["results"]


def fails(capsys, *flags):
    """(exit code, message) of a command that must say one line and no more."""
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
        (["--config.train.steps=few"], "config.train.steps"),
        (["--config.model.patch=3"], "config.model.patch: 3 does not divide the 8x8 images"),
        (["--config.model.heads=3"], "config.model.heads: 3 does not divide the width 16"),
        (["--config.model.heads=8"], "config.model.heads: width / heads = 2 must divide by 4"),
        (
            ["--config.train.accumulate=3"],
            "config.train.batch: 8 does not divide by 1 devices x 3 parts (config.train.acc",
        ),
        (["--config.diffusion.prediction=eps"], "config.diffusion.prediction: eps does not"),
        (["--config.data.name=imagnet"], "config.data.name: there is no 'imagnet' here, only"),
        (["--config.data.heldout=2.0"], "config.data.heldout: 2.0 is not between 0 and 1"),
        (["--config.sample.sampler.name=magic"], "config.sample.sampler.name: there is no 'magic'"),
        (["--n=4"], "n: no such key"),
        (["--processes=2"], "--coordinator, --processes, --process: give all or none"),
        (
            ["--coordinator=localhost:1", "--processes=2", "--process=2"],
            "--process: 2 is not in 0 to 1",
        ),
        (["--mode=sample"], "{workdir}: no checkpoints here; train first with --mode=train"),
        (["--mode=sample", "--n=0"], "--n: 0 is less than 1"),
        (["--mode=evaluate"], "{workdir}: no checkpoints here; train first with --mode=train"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, config, capsys, flags, message):
    workdir = tmp_path / "run"
    code, found = fails(capsys, config, f"--workdir={workdir}", *flags)
    message = message.format(workdir=workdir)
    assert found.startswith(message)
    assert code == (1 if "no checkpoints" in message else 2)
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--config.model.width=32"],
            "{workdir} was trained with another config (model.width: 16 ",
        ),
        (["--config.seed=1"], "{workdir} was trained with another config (seed: 0 -> 1); use the"),
        (["--config.train.ema=0.9"], "{workdir} was trained with another config (train.ema: (0.9"),
        (["--config.train.batch=16", "--config.seed=1"], "{workdir} was trained with another con"),
        (["--mode=sample", "--label=10"], "label: 10 is not in -1 (none) to 9"),
        (["--mode=sample", "--label=-2"], "label: -2 is not in -1 (none) to 9"),
        (["--mode=sample", "--prompt=a cat"], "--prompt: the model was trained with label as a"),
        (["--mode=sample", "--config.seed=1"], "{workdir} was trained with another config (seed"),
        (["--mode=evaluate"], "config.evaluate.metrics: empty; name what to measure"),
        (
            ["--mode=evaluate", "--config.evaluate.metrics=fid3"],
            "config.evaluate.metrics: there is",
        ),
        (
            ["--mode=evaluate", "--config.evaluate.images=1"],
            "config.evaluate.images: 1 is less tha",
        ),
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
    assert (code, found) == (2, "--config or --workdir: at least one is needed")
    path = tmp_path / "none.py"
    code, found = fails(capsys, f"--mode={mode}", f"--config={path}", f"--workdir={tmp_path / 'r'}")
    assert (code, found) == (2, f"--config: there is no file {path}")
    code, found = fails(capsys, f"--mode={mode}", f"--workdir={tmp_path}")
    path = tmp_path / "config.json"
    assert (code, found) == (2, f"{path}: not found; is this the workdir of a training run?")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_mode_is_answered_with_the_usage(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        tiny.call("--mode=dream", f"--workdir={tmp_path / 'run'}")
    assert caught.value.code == 2
    assert "invalid choice: 'dream' (choose from 'train', 'sample'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["train", "sample", "evaluate", "statistics", "prepare"])
def test_help(capsys, mode):
    with pytest.raises(SystemExit) as caught:
        tiny.call(f"--mode={mode}", "--help")
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert "--workdir" in said
    assert ("--label" in said) == (mode == "sample")


def test_the_default_workdir_is_named_after_the_config(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(f"def get_config(v=''):\n    return {tiny.config()!r}\n")
    for name, place in (("mine.py", "mine"), ("mine.py:large", "mine-large")):
        code, found = fails(capsys, f"--config={name}", "--mode=sample")
        assert (code, found.partition(":")[0]) == (1, f"runs/{place}")


def test_the_exit_code_reaches_the_shell(tmp_path):
    code, out, err = tiny.command(f"--workdir={tmp_path / 'run'}")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {tmp_path / 'run' / 'config.json'}: not found")
    assert err.count("\n") == 1
