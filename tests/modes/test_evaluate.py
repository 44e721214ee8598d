"""`--mode=evaluate` from outside: sweeps, floors, interruptions, any images, bad input."""

import itertools
import json
import shutil
import types
import zipfile

import numpy as np
import pytest
from PIL import Image

import vitdiff_jax
from tests import tiny
from tests.evaluation import weights
from tests.evaluation.test_frechet import by_sqrtm
from tests.evaluation.test_pixel_frechet import gaussian
from tests.modes.conftest import CHANGES, COUNT, SEED
from tests.test_main import fails
from vitdiff_jax.data import digits
from vitdiff_jax.evaluation import networks
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.inference import evaluator, loading
from vitdiff_jax.inference.model import TrainedModel
from vitdiff_jax.interop.images import save_npz, save_png
from vitdiff_jax.modes import evaluate
from vitdiff_jax.runtime.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("plain")


@pytest.fixture(scope="module")
def noise():
    """Images that no model is needed for, more of them than numbers in each."""
    return np.random.default_rng(0).integers(0, 256, (130, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def real():
    """{split: images}."""
    dataset = digits.dataset()
    return {"train": dataset.train.images, "heldout": dataset.heldout.images}


def report_of(workdir, *flags):
    assert tiny.call(f"--workdir={workdir}", "--mode=evaluate", *flags) == 0
    return json.loads((workdir / "evaluation.json").read_text())


def sweep(**values):
    return [f"--config.evaluate.sweep.{name}={value}" for name, value in values.items()]


def value(row, metric="fd/pixels"):
    return row["results"][metric]["value"]


def distance(images, others):
    """The Fréchet distance in pixels by NumPy and SciPy."""
    return by_sqrtm(gaussian(images), gaussian(others))


def draw(workdir, n=COUNT, ema=None, **options):
    """The samples that a row is of: the classes in turn, seeds from evaluate.seed on."""
    return vitdiff_jax.load(workdir, ema=ema).sample(None, n, SEED, **options)


def test_all_combinations_are_rows():
    values = dict(
        guidance=(1.0, 2.0), interval=((0.0, 1.0), (0.2, 0.8)), ema=(0.5, 0.99),
        sampler=("euler", "heun"), steps=(1, 2, 3),
    )  # fmt: skip
    settings = config_lib.complete(tiny.config(**CHANGES))
    (alone,) = evaluate.rows(settings)
    assert alone == evaluate.Row(1.0, 0.0, 1.0, 0.5, None, "euler", 2)
    settings.evaluate.sweep.update(values)
    found = {
        (r.guidance, (r.guidance_low, r.guidance_high), r.ema, r.sampler, r.steps)
        for r in evaluate.rows(settings)
    }
    assert found == set(itertools.product(*values.values()))
    names = ["-".join(row.differences(alone).values()) for row in evaluate.rows(settings)]
    assert len(set(names)) == 48  # a file each
    assert names[0] == "1steps"  # which differs from config.sample
    assert names[-1] == "guidance2-interval0.2-0.8-ema0.99-heun-3steps"


@pytest.fixture(scope="module")
def swept(untrained, plain, tmp_path_factory):
    """(workdir, report, what was said) of a sweep."""
    workdir = shutil.copytree(untrained, tmp_path_factory.mktemp("swept") / "run")
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("vitdiff_jax.runtime.logs.say", said.append)
        return workdir, report_of(workdir, *sweep(guidance=(1.0, 20.0), ema=(0.5, 0.99))), said


def test_each_ema_is_read_once(workdir, monkeypatch):
    """However many rows are of it."""
    read, load = [], loading.load

    def noted(*given, **ema):
        read.append(ema["ema"])
        return load(*given, **ema)

    monkeypatch.setattr(loading, "load", noted)
    measured = types.SimpleNamespace(count=COUNT)
    monkeypatch.setattr(evaluate, "_measure_row", lambda *given: measured)
    monkeypatch.setattr(evaluator.Evaluator, "results", lambda *given: {})
    monkeypatch.setattr(evaluator.Evaluator, "warnings", lambda *given: [])
    monkeypatch.setattr(evaluator.Evaluator, "real_scores", lambda *given: None)
    monkeypatch.setattr(evaluate.plots, "sweep", lambda *given: None)
    report = report_of(workdir, *sweep(guidance=(1.0, 2.0), ema=(0.5, 0.99), steps=(1, 2)))
    assert len(report["rows"]) == 8
    assert read == [0.5, 0.99]


def where(report, **settings):
    """The row with these settings."""
    (row,) = (r for r in report["rows"] if all(r[name] == v for name, v in settings.items()))
    return row


def test_options_reach_the_sampler(swept, real):
    """Each EMA is another model, and guidance counts."""
    workdir, report, _ = swept
    assert len(report["rows"]) == 4
    for ema in (0.5, 0.99):
        plain, guided = (value(where(report, ema=ema, guidance=g)) for g in (1.0, 20.0))
        assert guided != pytest.approx(plain, rel=1e-3)
    images = draw(workdir, ema=0.99, guidance=20.0)
    assert guided == pytest.approx(distance(images, real["heldout"]), rel=1e-3)
    values = [value(where(report, ema=e, guidance=1.0)) for e in (0.5, 0.99)]
    assert values[0] != pytest.approx(values[1], rel=1e-3)


def test_samplers_and_steps(workdir, swept, real):
    """Heun's last step is Euler's, so that one step is the same and two are not."""
    report = report_of(workdir, *sweep(sampler=("heun",), steps=(1, 2)))
    one, two = map(value, report["rows"])
    assert [row["network_calls"] for row in report["rows"]] == [1, 3]
    wanted = distance(draw(workdir, sampler="euler", steps=1), real["heldout"])
    assert one == pytest.approx(wanted, rel=1e-4)
    assert len({round(v, 3) for v in (one, two, value(swept[1]["rows"][0]))}) == 3


def test_the_report_has_every_setting(swept):
    workdir, report, _ = swept
    assert (report["step"], report["images"]) == (0, COUNT)
    stored = json.loads((workdir / "config.json").read_text())
    assert report["evaluate"].keys() == stored["evaluate"].keys()
    assert report["evaluate"]["sweep"]["guidance"] == [1.0, 20.0]
    assert report["sample"] == stored["sample"]
    assert report["data"] == stored["data"]
    assert (report["reference"], report["crop"]) == ("heldout", "none")
    assert report["versions"]["vitdiff_jax"] == vitdiff_jax.__version__
    assert report["seconds"] >= sum(row["seconds"] for row in report["rows"]) > 0


def test_best_is_by_the_first_metric_and_its_direction():
    """The most accurate row is not always the nearest."""
    distance = types.SimpleNamespace(name="far", higher_is_better=False)
    share = types.SimpleNamespace(name="right", higher_is_better=True)
    found = [
        {"results": {"far": {"value": far}, "right": {"value": right}}}
        for far, right in [(3.0, 0.2), (1.0, 0.1), (2.0, 0.9)]
    ]
    assert (evaluate._best(distance, found), evaluate._best(share, found)) == (1, 2)


def test_table(swept):
    """What differs, all numbers, the best marked, the floor."""
    _, report, said = swept
    assert value(report["rows"][report["best"]]) == min(map(value, report["rows"]))
    head = next(i for i, line in enumerate(said) if line.split()[:1] == ["guidance"])
    names = ["guidance", "ema", "fd/pixels"]
    assert said[head].split() == names
    lines = [line.split() for line in said[head + 1 : head + 6]]
    for i, (line, row) in enumerate(zip(lines, report["rows"])):
        best = ["best"] if i == report["best"] else []
        wanted = [str(row[name]) for name in names[:-1]] + [f"{value(row):.4f}"]
        assert line == best + wanted
    floor = report["real_images"]["results"]["fd/pixels"]["value"]
    assert lines[4] == ["real", "images", f"{floor:.4f}"]
    assert said[head + 6] == f"real images: {COUNT} training images"


def test_picture(swept, workdir):
    """Of a sweep; there is nothing to plot of one row."""
    with Image.open(swept[0] / "evaluation.png") as picture:
        assert picture.format == "PNG"
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    report_of(workdir)
    assert not (workdir / "evaluation.png").exists()


def test_nothing_is_left_but_results(swept):
    """What an interrupted sweep would need is gone; what is known of real images stays."""
    kept = {path.name for path in (swept[0] / "evaluation").iterdir()}
    assert kept == {"real-heldout.npz", "real-train.npz"}


def test_floor_is_the_distance_of_the_other_split(tmp_path, config, real, noise):
    """By as many images as samples: here more than there are, so all."""
    flags = [config, given(tmp_path, np.tile(noise, (10, 1, 1, 1)))]
    for reference, other in (("heldout", "train"), ("train", "heldout")):
        report = report_of(tmp_path / "run", *flags, f"--config.evaluate.reference={reference}")
        floor = report["real_images"]["results"]["fd/pixels"]["value"]
        assert floor == pytest.approx(distance(real["train"], real["heldout"]), rel=1e-3)
        split = {"train": "training", "heldout": "held-out"}[other]
        assert report["real_images"]["of"] == f"{len(real[other]):,} {split} images"
        wanted = distance(np.tile(noise, (10, 1, 1, 1)), real[reference])
        assert value(report["rows"][0]) == pytest.approx(wanted, rel=1e-3)


def test_floor_of_few_samples_is_of_as_few_real_images(swept, real):
    which = np.random.default_rng(0).choice(len(real["train"]), COUNT, replace=False)
    wanted = distance(real["train"][which], real["heldout"])
    floor = swept[1]["real_images"]["results"]["fd/pixels"]["value"]
    assert floor == pytest.approx(wanted, rel=1e-2)


@pytest.mark.parametrize("npz", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_interrupted_sweep_goes_on(workdir, swept, monkeypatch, capsys, npz):
    """In its second row and twice: no image is drawn again, the numbers are the same."""
    monkeypatch.setattr(evaluator, "SAVE_SECONDS", 0)
    plain, calls = TrainedModel.sample_cond, []

    def limited(self, cond, n, seed, **options):
        if len(calls) == limit:
            raise KeyboardInterrupt
        calls.append((options["guidance"], seed - SEED, n))
        return plain(self, cond, n, seed, **options)

    monkeypatch.setattr(TrainedModel, "sample_cond", limited)
    flags = [*sweep(guidance=(1.0, 20.0)), *["--npz"] * npz]
    for stop in (6, 7):
        limit = stop
        assert tiny.call(f"--workdir={workdir}", "--mode=evaluate", *flags) == 1
        assert "interrupted; run the same command to continue" in capsys.readouterr().err
        assert not (workdir / "evaluation.json").exists()
    limit = 99
    report = report_of(workdir, *flags)
    assert f"resuming at image 32 of {COUNT}" in capsys.readouterr().out
    parts = [(first, 16) for first in range(0, COUNT, 16)]
    assert calls == [(guidance, *part) for guidance in (1.0, 20.0) for part in parts]
    for row in report["rows"]:
        same = where(swept[1], guidance=row["guidance"], ema=0.5)
        assert row["results"] == same["results"]
    if npz:
        for path in (workdir / "evaluation").glob("samples-*.npz"):
            guidance = 20.0 if "guidance20" in path.name else 1.0
            assert_near(np.load(path)["arr_0"], draw(workdir, guidance=guidance))


def test_killed_with_the_last_samples_written_but_not_counted(workdir, monkeypatch):
    """Measuring the last batch takes a while: what follows must not be a dead end."""
    monkeypatch.setattr(evaluator, "SAVE_SECONDS", 0)
    update = evaluator.Measured.update

    def killed(self, batch):
        if self.done + len(batch.images) == COUNT:
            raise KeyboardInterrupt
        update(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(evaluator.Measured, "update", killed)
        assert tiny.call(f"--workdir={workdir}", "--mode=evaluate", "--npz") == 1
    report_of(workdir, "--npz")


def assert_near(images, others):
    """Within one grey level: other batch shapes round differently."""
    assert images.shape == others.shape
    assert np.abs(images.astype(int) - others).max() <= 1


def given(home, images):
    """--samples of these images."""
    save_npz(home / "images.npz", images)
    return f"--samples={home / 'images.npz'}"


def pngs(images, home):
    home.mkdir()
    for i, image in enumerate(images):
        save_png(home / f"{i:05d}.png", image)
    return home


@pytest.mark.slow
def test_samples_are_the_same_from_a_model_and_from_files(workdir, config, tmp_path):
    """--npz writes what --mode=sample draws from the same seeds; files give the same numbers."""
    report = report_of(workdir, "--npz")
    (path,) = (workdir / "evaluation").glob("samples-step0.npz")
    with np.load(path) as file:
        assert file.files == ["arr_0"]
        images = file["arr_0"]
    flags = ["--mode=sample", "--npz", f"--n={COUNT}", f"--seed={SEED}"]
    assert tiny.call(f"--workdir={workdir}", *flags) == 0
    (drawn,) = (workdir / "samples").glob(f"*-seed{SEED}-n{COUNT}.npz")
    np.testing.assert_array_equal(images, np.load(drawn)["arr_0"])
    folder = pngs(images, tmp_path / "pngs")
    with zipfile.ZipFile(tmp_path / "pngs.zip", "w") as archive:
        for picture in folder.iterdir():
            archive.write(picture, picture.name)
    for place in (path, folder, tmp_path / "pngs.zip"):
        found = report_of(tmp_path / "elsewhere", config, f"--samples={place}")
        assert found["images"] == COUNT
        assert value(found["rows"][0]) == pytest.approx(value(report["rows"][0]), rel=1e-9)
        assert found["real_images"] == report["real_images"]


def test_pairs(tmp_path, config, real, capsys):
    """psnr by its formula; a true image is most like itself."""
    true = real["train"][:9].repeat(2, 1).repeat(2, 2)
    images = np.clip(true.astype(int) + np.arange(9)[:, None, None, None] + 1, 0, 255)
    images = images.astype(np.uint8)
    save_npz(tmp_path / "images.npz", images)
    folder = pngs(true, tmp_path / "true")
    flags = [config, "--config.evaluate.metrics=('psnr','ssim')", f"--truth={folder}"]
    report = report_of(tmp_path / "run", *flags, f"--samples={tmp_path / 'images.npz'}")
    errors = ((images / 1.0 - true) ** 2).mean((1, 2, 3))
    (row,) = report["rows"]
    assert value(row, "psnr/uint8") == pytest.approx((20 * np.log10(255 / errors**0.5)).mean())
    assert 0.5 < value(row, "ssim/gaussian-11") < 1
    assert report["real_images"] is None
    assert report["truth"] == str(folder)
    assert "warning" not in capsys.readouterr().out
    flags[1] = "--config.evaluate.metrics=('ssim',)"
    report = report_of(tmp_path / "run", *flags, f"--samples={folder}")
    assert value(report["rows"][0], "ssim/gaussian-11") == pytest.approx(1)


@pytest.mark.slow
def test_training_evaluates_each_ema(config, tmp_path):
    """The same samples as --mode=evaluate draws afterwards."""
    workdir, log = tmp_path / "run", dict(every=20, evaluate_every=10, evaluate_images=COUNT)
    flags = [f"--config.log.{name}={value}" for name, value in log.items()]
    assert tiny.call(config, f"--workdir={workdir}", "--config.train.steps=20", *flags) == 0
    report = report_of(workdir, *sweep(ema=(0.5, 0.99)))
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line for line in lines if "evaluation_seconds" in line}
    assert list(found) == [10, 20]
    for ema in (0.5, 0.99):
        last = found[20][f"fd/pixels/ema{ema}/value"]
        assert last == pytest.approx(value(where(report, ema=ema)), rel=1e-6)
        assert found[10][f"fd/pixels/ema{ema}/value"] != last
    assert all(line["evaluation_seconds"] > 0 for line in found.values())


@pytest.mark.parametrize("wrong", ["metrics=()", "metrics=fid", "reference=/none.npz"])
def test_what_training_cannot_evaluate_is_refused_at_the_start(tmp_path, config, capsys, wrong):
    flags = [config, f"--workdir={tmp_path / 'run'}", f"--config.evaluate.{wrong}"]
    flags += ["--config.log.evaluate_every=10"]
    fails(capsys, *flags, "--config.evaluate.inception=/none.safetensors")
    assert not (tmp_path / "run").exists()


def warned(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]


def test_too_few_images_for_a_covariance(tmp_path, config, noise, capsys):
    for count in (10, 64, 65):
        report_of(tmp_path / "run", config, given(tmp_path, noise[:count]))
        line = f"warning: fd/pixels: {count} images are too few for 64 features"
        found = warned(capsys)
        assert [text[: len(line)] for text in found] == [line] * (count < 65)


def test_samples_that_were_compressed_with_loss(tmp_path, config, noise, capsys):
    (tmp_path / "images").mkdir()
    for i, image in enumerate(noise):
        Image.fromarray(image[..., 0]).save(tmp_path / "images" / f"{i}.jpg")
    report_of(tmp_path / "run", config, f"--samples={tmp_path / 'images'}")
    (found,) = warned(capsys)
    assert found.startswith("warning: the samples have lossy compression (JPEG, WebP)")


def test_a_reference_of_other_images(workdir, tmp_path, monkeypatch, capsys):
    """Another size or crop shifts a distance, and nothing in the numbers would tell."""
    monkeypatch.setattr(networks, "inception", weights.small)
    fid = "--config.evaluate.metrics=fid"
    save = dict(mu=np.zeros(5), sigma=np.eye(5))
    file = tmp_path / "file.npz"
    np.savez(file, **save, about=json.dumps(dict(size=[16, 16, 1], crop="face to 16x16")))
    report = report_of(workdir, f"--config.evaluate.reference={file}", fid)
    size, crop = warned(capsys)
    assert size.startswith("warning: the samples have shape (8, 8, 1), the reference ")
    assert "has [16, 16, 1]" in size
    assert crop.startswith("warning: the training images were cropped 'none', the reference ")
    assert "'face to 16x16'" in crop
    assert report["reference"]["file"] == str(file)
    assert report["reference"]["crop"] == "face to 16x16"
    np.savez(file, **save)
    report_of(workdir, f"--config.evaluate.reference={file}", fid)
    assert warned(capsys) == []


def refused(capsys, *flags):
    """(exit code, the only line on stderr); what is said before does not matter."""
    code = tiny.call("--mode=evaluate", *flags)
    err = capsys.readouterr().err
    assert code in (1, 2)
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    return code, err.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("sweep.ema=(0.9,)", "config.evaluate.sweep.ema: 0.9 is not one of train.ema [0.5, 0.99]"),
        ("sweep.sampler=magic", "config.evaluate.sweep.sampler: unknown name 'magic'; available:"),
        (
            "sweep.interval=(0.1,0.9)",
            "config.evaluate.sweep.interval: 0.1 is not a pair (low, high)",
        ),
        (
            "sweep.interval=((0.1,),)",
            "config.evaluate.sweep.interval: (0.1,) is not a pair (low, high)",
        ),
        ("sweep.guidance=('much',)", "config.evaluate.sweep.guidance: "),
        ("sweep.steps=(0,)", "config.evaluate.sweep.steps: "),
        ("sweep.steps=('few',)", "config.evaluate.sweep.steps: "),
        ("sweep.interval=((0,'a'),)", "config.evaluate.sweep.interval: "),
        ("labels=mine", "config.evaluate.labels: 'mine' is not one of balanced, prior"),
        ("reference=/no.npz", "/no.npz: no such file of reference statistics"),
        ("metrics=psnr", "config.evaluate.metrics: psnr compares pairs of images: --truth is req"),
    ],
)
def test_impossible_wishes(untrained, capsys, flag, message):
    _, found = refused(capsys, f"--workdir={untrained}", f"--config.evaluate.{flag}")
    assert found.startswith(message)


def test_a_model_of_nothing(untrained, monkeypatch, capsys):
    """Images of NaN would be black ones, with a distance like any other."""
    restore = Checkpoints.restore_emas
    monkeypatch.setattr(
        Checkpoints, "restore_emas",
        lambda *args: evaluate.jax.tree.map(lambda a: a * np.nan, restore(*args)),
    )  # fmt: skip
    for flags in ([], ["--npz"]):
        code, found = refused(capsys, f"--workdir={untrained}", *flags)
        assert code == 1
        assert found.startswith(f"the sample of seed {SEED} is not finite: the parameters are not")


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("pixel_frechet of one", ""),
        ("pixel_frechet of another size", "config.evaluate.metrics: "),
        ("ssim", "config.evaluate.metrics: ssim: images of 8x8 are smaller than the window of 11"),
        ("class_accuracy", "config.evaluate.metrics: class_accuracy needs the class labels of"),
        ("psnr", "config.evaluate.metrics: psnr compares pairs of images: --truth is required"),
        ("()", "config.evaluate.metrics: empty; name at least one metric"),
    ],
)
def test_what_cannot_be_measured_of_pictures(tmp_path, config, noise, capsys, metrics, message):
    metrics, _, which = metrics.partition(" of ")
    images = {"one": noise[:1], "another size": noise.repeat(2, 1)}.get(which, noise)
    flags = [config, f"--workdir={tmp_path / 'run'}", given(tmp_path, images)]
    if metrics == "ssim":
        flags.append(f"--truth={tmp_path / 'images.npz'}")
    code, found = refused(capsys, *flags, f"--config.evaluate.metrics={metrics}")
    assert (code, found[: len(message)]) == (1 if which == "one" else 2, message)


def test_pictures_that_cannot_be_used(tmp_path, config, capsys):
    """More of them are in `data/test_image_files`."""
    flags = [config, f"--workdir={tmp_path / 'run'}"]
    code, found = refused(capsys, *flags, f"--samples={tmp_path / 'none.npz'}")
    assert (code, found.partition(":")[0]) == (1, str(tmp_path / "none.npz"))
    assert not (tmp_path / "run" / "evaluation.json").exists()


def test_truth_of_other_images(tmp_path, config, noise, capsys):
    flags = [config, f"--workdir={tmp_path / 'run'}", given(tmp_path, noise)]
    _, found = refused(capsys, *flags, f"--truth={tmp_path / 'none'}")
    assert found.startswith(f"{tmp_path / 'none'}: no such folder or zip file")
    for name, other in (("fewer", noise[1:]), ("higher", noise.repeat(2, 1))):
        save_npz(tmp_path / f"{name}.npz", other)
        _, found = refused(capsys, *flags, f"--truth={tmp_path / name}.npz")
        assert found.startswith(f"--truth: {len(other)} images in {tmp_path / name}.npz of ")


def test_truth_for_a_model(untrained, tmp_path, capsys):
    _, found = refused(capsys, f"--workdir={untrained}", f"--truth={tmp_path}")
    assert found.startswith("--truth: ")
