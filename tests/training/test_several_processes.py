"""2 and 4 processes with four devices together do what one device does, and share the work.

This file is also the program that each of them runs, see `main`.
"""

import argparse
import json
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
from PIL import Image

from tests import few_digits, tiny
from tests.evaluation import weights
from tests.runtime.test_processes import processes
from vitdiff_jax.data import digits
from vitdiff_jax.evaluation import metric, networks
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.modes import evaluate, restore, sample, statistics
from vitdiff_jax.runtime import parallel
from vitdiff_jax.runtime.checkpoint import Checkpoints
from vitdiff_jax.training import loop

pytestmark = pytest.mark.slow
STEPS, SAVED, TRAIN = 10, 4, 101
LAYOUTS = {  # name -> config.parallel
    "data parallel": dict(),
    "fsdp 4": dict(fsdp=4),
    "pmap": dict(compiler="pmap"),
    "zero 1": dict(zero1=True),
}
SETTINGS = dict(
    model=tiny.WIDE,
    data=dict(name="tests.few_digits", train=TRAIN, moved=True),
    optimizer=dict(eps=1e-3),  # or Adam turns the rounding of tiny gradients into steps as well
    train=dict(steps=STEPS),
    checkpoint=dict(every=SAVED, keep=3),
    evaluate=dict(metrics=("class_accuracy", "fid"), images=22),
    restore=dict(
        tasks=("denoise",), methods=("ddrm",), metrics=("psnr",), images=10, batch=8, steps=3
    ),
)
LOOKS = {
    "data parallel": dict(
        sample_every=5, heldout_every=STEPS, heldout_images=20, heldout_levels=2, nearest_every=5,
    )
}  # fmt: skip
PICTURES, REAL, DRAWN = 3, 21, 10
"""That are restored, measured and drawn; two processes cannot share them evenly."""


def settings(name):
    """The config of a layout; only one of them looks around while it trains."""
    changes = SETTINGS | dict(parallel=LAYOUTS[name], log=dict(every=1) | LOOKS.get(name, {}))
    return config_lib.complete(tiny.config(**changes))


def main(place, process):
    """Go on with what others have left, or train with each layout; use a trained model."""
    if (place / "gone on").exists():
        train_and_note(place / "gone on", "fsdp 4", SAVED)
    elif jax.process_count() > 1:
        for name in LAYOUTS:
            train_and_note(place / name, name)
    if (place / "model").exists():
        found = use(place / "model")
        (place / "model" / f"noted-{process}.json").write_text(json.dumps(found))


def train_and_note(workdir, name, start=0):
    """Train to the end; what this process has seen of each batch is kept."""
    seen, put = [], parallel.put_batch
    parallel.put_batch = lambda mesh, batch: seen.append(batch["image"]) or put(mesh, batch)
    loop.train(settings(name), workdir)
    parallel.put_batch = put
    # Then come one batch that has travelled ahead, and the held-out images.
    np.save(workdir / f"seen-{jax.process_index()}.npy", np.stack(seen[: STEPS - start]))


def use(workdir):
    """Sample, evaluate, restore and measure; how many examples were read, what was restored."""
    config, read, restored = settings("data parallel"), {}, []

    def counted(name, run, *args, **flags):
        before = few_digits.Moved.read
        run(*args, **flags)
        read[name] = few_digits.Moved.read - before

    networks.inception = weights.small  # of five numbers an image, as quick as they are few
    write = restore._write
    restore._write = lambda stem, *rest: restored.append(stem.name) or write(stem, *rest)
    counted("nearest", sample.main, config, workdir, n=DRAWN, npz=True, nearest=True)
    counted("statistics", statistics.main, config, workdir, split="heldout", n=REAL)
    evaluate.main(config, workdir)
    restore.main(config, workdir)
    if jax.process_index() == 0:
        (workdir / "restoration.json").rename(workdir / "benchmark.json")
    restore.main(config, workdir, input=workdir / "pictures", noise=0.2, n=2)
    return {"read": read, "restored": restored}


def program(count, place):
    """That many processes run `main` in a folder, to a good end."""
    with processes(
        count, f"--place={place}", program=("-m", "tests.training.test_several_processes")
    ) as found:
        ends = [process.communicate(timeout=500) for process in found]
    assert [process.returncode for process in found] == [0] * count, ends
    return place


def copied(workdir, target, steps=None):
    """What another run needs to go on: the config and the checkpoints, of some steps only."""
    shutil.copytree(workdir / "checkpoints", target / "checkpoints")
    shutil.copy(workdir / "config.json", target)
    for path in (target / "checkpoints").iterdir():
        if steps and int(path.name) not in steps:
            shutil.rmtree(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """What one process with one device trains: all others shall do as it does."""
    workdir = tmp_path_factory.mktemp("model") / "run"
    train_and_note(workdir, "data parallel")
    return workdir


def prepared(model, place):
    """A folder with a trained model, and pictures to restore with it."""
    copied(model, place / "model")
    (place / "model" / "pictures").mkdir()
    for i, image in enumerate(digits.dataset().heldout.images[:PICTURES]):
        image_lib.save_png(place / "model" / "pictures" / f"{i}.png", image)
    return place


@pytest.fixture(scope="module")
def one(tmp_path_factory, model):
    """What one process with four devices makes of a trained model."""
    return program(1, prepared(model, tmp_path_factory.mktemp("one")))


@pytest.fixture(scope="module")
def two(tmp_path_factory, model):
    """What two make of it; they have also trained with each layout."""
    return program(2, prepared(model, tmp_path_factory.mktemp("two")))


@pytest.fixture(scope="module")
def four(tmp_path_factory, two):
    """What four leave that went on with a run of two."""
    place = tmp_path_factory.mktemp("four")
    copied(two / "data parallel", place / "gone on", [SAVED])
    return program(4, place)


def losses(workdir):
    """{step: [loss, norm of the gradient]} of training."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: [line["loss"], line["grad_norm"]] for line in lines if "loss" in line}


def seen(workdir):
    """All batches as all processes together saw them, [steps, batch, 8, 8, 1]."""
    return np.concatenate([np.load(path) for path in sorted(workdir.glob("seen-*.npy"))], 1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_losses_over_ten_steps(two, model, name):
    found, wanted = losses(two / name), losses(model)
    assert list(found) == list(wanted) == list(range(1, STEPS + 1))
    for step in wanted:
        assert found[step] == pytest.approx(wanted[step], rel=1e-5), step


def test_the_same_global_batches(two, model):
    """The same digits at the same places, moved alike: what the processes see, side by side."""
    assert not (seen(model)[0] == seen(model)[1]).all()
    np.testing.assert_array_equal(seen(two / "data parallel"), seen(model))


def assert_goes_on(workdir, model):
    found, wanted = losses(workdir), losses(model)
    assert list(found) == list(range(SAVED + 1, STEPS + 1))
    for step, values in found.items():
        assert values == pytest.approx(wanted[step], rel=1e-5), step
    np.testing.assert_array_equal(seen(workdir), seen(model)[SAVED:])


def test_four_processes_go_on_with_what_two_have_saved(four, model):
    assert_goes_on(four / "gone on", model)


def test_one_device_goes_on_with_what_two_processes_have_saved(two, model, tmp_path):
    copied(two / "data parallel", tmp_path, [SAVED])
    train_and_note(tmp_path, "data parallel", SAVED)
    assert_goes_on(tmp_path, model)


def test_process_0_writes_for_all(two, model):
    """One TensorBoard file, each line and sample once, and what is looked at is the same."""
    workdirs = two / "data parallel", model
    assert tiny.logged(workdirs[0]) == tiny.logged(model)
    assert len(list(workdirs[0].glob("events*"))) == 1
    names = [{path.name for path in (place / "samples").iterdir()} for place in workdirs]
    assert names[0] == names[1] >= {"00000005.png", "00000010.png"}
    steps = [{path.name for path in (place / "checkpoints").iterdir()} for place in workdirs]
    assert steps[0] == steps[1] == {"4", "8", "10"}
    found, wanted = ((place / "metrics.jsonl").read_text().splitlines()[-1] for place in workdirs)
    assert json.loads(found) == pytest.approx(json.loads(wanted), rel=1e-4)


def noted(place):
    return [json.loads(path.read_text()) for path in sorted((place / "model").glob("noted-*.json"))]


def test_each_process_reads_its_share(one, two):
    """Of the images to be measured, and of those that samples may be copies of.

    The classifier of class_accuracy, for small images, is trained in each process, with all.
    """
    (alone,), both = noted(one), noted(two)
    assert alone["read"] == {"nearest": TRAIN, "statistics": TRAIN + REAL}
    assert [share["read"]["statistics"] for share in both] == [TRAIN + REAL // 2 + 1] * 2
    assert [share["read"]["nearest"] for share in both] == [TRAIN // 2 + 1, TRAIN // 2]


def test_each_picture_is_restored_once(one, two):
    (alone,), both = noted(one), noted(two)
    assert alone["restored"] == ["0", "1", "2"]
    assert [share["restored"] for share in both] == [["0", "2"], ["1"]]


def values(path):
    """{place: value} of a report, without what is different each time."""
    report = json.loads(path.read_text())
    found, _ = jax.tree_util.tree_flatten_with_path(report, is_leaf=lambda value: value is None)
    other = ("['seconds']", "['memory']", "['input']", "['parameters']")
    return {
        name: v for place, v in found if not (name := jax.tree_util.keystr(place)).endswith(other)
    }


@pytest.mark.parametrize("name", ["evaluation.json", "restoration.json", "benchmark.json"])
def test_the_same_reports(one, two, name):
    """Metrics on the host and of a network, with their floor; restored pictures; the benchmark."""
    found, wanted = (values(place / "model" / name) for place in (two, one))
    assert found == {
        name: pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
        for name, value in wanted.items()
    }


def test_the_same_images(one, two):
    """To one grey level: samples, copies beside, restored, degraded, std; no file too many."""
    found, wanted = (
        {path.relative_to(place): np.asarray(Image.open(path)).astype(int)
         for path in place.glob("model/*/**/*.png")}
        for place in (two, one)
    )  # fmt: skip
    assert found.keys() == wanted.keys()
    assert len(wanted) > PICTURES * 5
    for path in wanted:
        assert np.abs(found[path] - wanted[path]).max() <= 1, path


def test_the_same_statistics(one, two):
    paths = [next((place / "model" / "statistics").iterdir()) for place in (one, two)]
    found, wanted = (metric.read_npz(path) for path in paths)
    assert found.keys() == wanted.keys() >= {"mu", "sigma", "features", "mu_s"}
    for name in wanted.keys() - {"about"}:
        scale = np.abs(wanted[name]).max()
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5 * scale, rtol=0)


def test_two_processes_stop_at_the_same_step(tmp_path, capsys):
    """A cluster's SIGTERM may reach one of them only; then the same command goes on."""
    slow = dict(data=dict(name="tests.slow_digits"), train=dict(steps=400))
    flag = tiny.write(tmp_path / "slow.py", model=tiny.WIDE, log=dict(every=1), **slow)
    flags = [flag, f"--workdir={tmp_path / 'run'}", "--config.parallel.fsdp=4"]
    with processes(2, *flags) as found:
        tiny.until(lambda: len(tiny.logged(tmp_path / "run")) > 3, *found)
        found[1].send_signal(signal.SIGTERM)
        ends = [process.communicate(timeout=120) for process in found]
    assert [process.returncode for process in found] == [75, 75], ends
    step = Checkpoints(tmp_path / "run" / "checkpoints", read_only=True).newest()
    assert step == tiny.logged(tmp_path / "run")[-1] < 400
    assert f"stopped by a signal at step {step}, saved" in ends[0][0]
    assert f"step {step}/400" not in ends[1][0]  # process 0 speaks for both
    assert tiny.call(*flags[:2], f"--config.train.steps={step + 1}") == 0
    assert f"resuming at step {step} of {step + 1}" in capsys.readouterr().out


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--place", type=pathlib.Path)
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    given = parser.parse_args()
    if given.processes > 1:
        parallel.start_distributed(given.coordinator, given.processes, given.process)
    parallel.use_compilation_cache()
    main(given.place, given.process)
