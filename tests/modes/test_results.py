"""Results stay: nothing writes over a different one, each says how it was made, one may fail."""

import dataclasses
import json
import pathlib
import shutil
from unittest import mock

import numpy as np
import pytest
from PIL import Image

import vitdiff_jax
from tests import tiny
from tests.test_main import fails
from vitdiff_jax.data import digits
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import benchmark, inputs, loading, model, provenance, restoring
from vitdiff_jax.inference.sampling import SamplingError
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.interop import sheets
from vitdiff_jax.modes import report, sample
from vitdiff_jax.runtime import paths

RANDOM = np.random.default_rng(0)
pytestmark = pytest.mark.usefixtures("plain")


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Its plots take a while, and others test it."""
    monkeypatch.setattr(report, "at_end", lambda workdir: None)


@pytest.fixture(scope="module")
def loaded(untrained, plain):
    return vitdiff_jax.load(untrained)


@pytest.fixture
def quick(loaded, monkeypatch):
    """The network is not asked: results are random numbers of the seed and the guidance."""

    def load(workdir, config=None, **ema):
        config = config or loaded.experiment.config
        experiment = dataclasses.replace(loaded.experiment, config=config)
        return model.TrainedModel(experiment, loaded.params, 0, loaded.mesh)

    def sample_cond(self, cond, n, seed, guidance=1.0, **options):
        seeds = [seed, int(100 * guidance)]
        return np.random.default_rng(seeds).integers(0, 256, (n, 8, 8, 1), np.uint8)

    def restore(self, image, task, n, **options):
        samples = np.random.default_rng(n).uniform(-1, 1, (n, *image.shape))
        costs = dict(seconds=1.0, memory=1, network_calls=1)
        return restoring.Restored(samples, image, dict(task=task, method="none") | costs)

    monkeypatch.setattr(loading, "load", load)
    monkeypatch.setattr(sample, "load", load)
    monkeypatch.setattr(model.TrainedModel, "sample_cond", sample_cond)
    monkeypatch.setattr(model.TrainedModel, "restore", restore)


def run(workdir, mode, *flags):
    assert tiny.call(f"--workdir={workdir}", f"--mode={mode}", *flags) == 0


def names(home):
    return sorted(path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file())


def picture(path, seed=0, size=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def made(path):
    return provenance.read(pathlib.Path(path))


# --- Samples ---


@pytest.mark.usefixtures("quick")
def test_one_seed_with_other_settings_is_another_file(workdir):
    """Guidance, a sampler, steps; and what the config itself says has the plain name."""
    changes = {
        "": [], "-guidance2": ["guidance=2.0"], "-heun": ["sampler.name=heun"],
        "-guidance1.5-steps1": ["steps=1", "guidance=1.5"],
    }  # fmt: skip
    for change in changes.values():
        run(workdir, "sample", "--n=2", *(f"--config.sample.{one}" for one in change))
    wanted = sorted(f"step0{name}-seed0-n2.png" for name in changes)
    assert names(workdir / "samples") == wanted
    before = tiny.files(workdir / "samples")
    assert len(set(before.values())) == 4
    run(workdir, "sample", "--n=2", "--config.sample.guidance=2.0")
    run(workdir, "sample", "--n=2", "--config.sample.batch=1")  # cuts the same work otherwise
    assert names(workdir / "samples") == wanted
    assert made(workdir / "samples" / wanted[1])["settings"]["sample"]["guidance"] == 2.0


def test_samples_say_how_they_were_made(workdir):
    run(workdir, "sample", "--n=2", "--seed=5", "--label=3", "--npz", "--nearest")
    stem = workdir / "samples" / "step0-label-3-seed5-n2"
    known = made(f"{stem}.png")
    assert (known["mode"], known["step"], known["seed"], known["n"]) == ("sample", 0, 5, 2)
    assert known["version"] == vitdiff_jax.__version__
    assert known["condition"] == {"label": "3", "prompt": None, "attributes": None}
    assert known["settings"]["sample"]["sampler"] == {"name": "euler"}
    assert known["settings"]["ema"] == "0.5"
    assert json.loads(stem.with_name(f"{stem.name}.json").read_text()) == {"made": known}
    nearest = made(f"{stem}-nearest.png")
    assert nearest.items() >= (known | {"shows": "nearest"}).items()
    assert nearest.keys() - known.keys() == {"shows", "data", "mark"}
    assert sheets.read(stem.with_name(f"{stem.name}.png")).kind == "samples"


def test_samples_of_other_parameters_stay(workdir, tmp_path):
    """The workdir's own settings, at the same step: trained anew."""
    run(workdir, "sample", "--n=1")
    (old,) = (workdir / "samples").iterdir()
    kept = old.read_bytes()
    other = tiny.save(tmp_path / "other", tiny.config(model=tiny.PLAIN, train=dict(ema=(0.5,))), 9)
    (other / "samples").mkdir()
    (other / "samples" / old.name).write_bytes(kept)
    run(other, "sample", "--n=1")
    assert (other / "samples" / old.name).read_bytes() == kept
    assert len(names(other / "samples")) == 2


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("there", [b"", b"no picture", None], ids=["empty", "text", "another's"])
def test_what_is_not_ours_stays(workdir, there):
    (workdir / "samples").mkdir()
    path = workdir / "samples" / "step0-seed0-n1.png"
    path.write_bytes(there) if there is not None else picture(path)
    before = path.read_bytes()
    for _ in range(2):
        run(workdir, "sample", "--n=1")
    assert path.read_bytes() == before
    assert len(names(workdir / "samples")) == 2


def test_names_of_many_settings_are_short(untrained):
    config = vitdiff_jax.load(untrained).experiment.config
    stored = json.loads((untrained / "config.json").read_text())
    assert provenance.differences(config, stored) == []
    config.sample.update(guidance=2.5, threshold="dynamic", steps=7, guidance_low=0.1)
    found = provenance.differences(config, stored)
    assert set(found) == {"guidance2.5", "threshold-dynamic", "steps7", "guidance_low0.1"}
    stored["sample"]["guidance_high"] = 0.5
    config.sample.guide_with = "/somewhere/else/weak"  # of a path its name is enough
    found = provenance.differences(config, stored)
    assert {"guidance_high1", "guide_with-weak"} <= set(found)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pictures_of_any_depth_carry_text(tmp_path, dtype, channels):
    image = RANDOM.integers(0, np.iinfo(dtype).max, (5, 4, channels), dtype)
    known = provenance.record("restore", 3, prompt="a “cat”\n", noise=float("nan"))
    image_lib.save_png(tmp_path / "a.png", image, text=provenance.chunk(known, shows="beside"))
    assert made(tmp_path / "a.png") == known | {"shows": "beside", "noise": None}
    if dtype == np.uint8 or channels == 1:
        with Image.open(tmp_path / "a.png") as file:
            np.testing.assert_array_equal(np.asarray(file).reshape(image.shape), image)


# --- Restored pictures ---


DENOISE = ("--task=denoise", "--method=ddnm", "--noise=0.1")


@pytest.mark.usefixtures("quick")
def test_pictures_whose_names_meet_are_all_kept(workdir, tmp_path):
    """a.png has the samples a-1 and a-2, and there is a picture a-1."""
    for i, name in enumerate(("a.png", "a-1.png", "z.png")):
        picture(tmp_path / "photos" / name, i)
    run(workdir, "restore", f"--input={tmp_path / 'photos'}", *DENOISE, "--n=2")
    ends = ("", "-1", "-2", "-beside", "-uncertainty")
    stems = ("a.png", "a-1.png", "z")
    assert names(workdir / "restored") == sorted(f"{s}{e}.png" for s in stems for e in ends)
    sources = {stem: made(workdir / "restored" / f"{stem}-1.png")["source"] for stem in stems}
    assert sources == {"a.png": "a.png", "a-1.png": "a-1.png", "z": "z.png"}


@pytest.mark.parametrize(
    ("given", "n", "wanted"),
    [
        (["a.png", "b.png"], 2, ["a", "b"]),
        (["a.png", "a.jpg"], 1, ["a.png", "a.jpg"]),
        (["a.png", "a-1.png"], 1, ["a", "a-1"]),
        (["a.png", "a-3.png"], 2, ["a", "a-3"]),
        (["a.png", "a-3.png"], 3, ["a.png", "a-3.png"]),
        (["a.png", "a-beside.png"], 1, ["a.png", "a-beside.png"]),
        (["a.png", "a-uncertainty.png"], 1, ["a", "a-uncertainty"]),
        (["a.png", "a.jpg", "a.png.png"], 1, ["a.png", "a.jpg", "a.png.png"]),
        (["A.png", "a.jpg"], 1, ["A.png", "a.jpg"]),  # one file on some systems
        (["A.png", "a.png"], 1, ["A.png", "a.png"]),
        (["x/a.png", "y/a.png", "a.png"], 2, ["x/a", "y/a", "a"]),
        (["a.b.png", "a.c.png"], 1, ["a.b", "a.c"]),
    ],
    ids=str,
)  # fmt: skip
def test_names_of_what_pictures_become(tmp_path, given, n, wanted):
    found = inputs.stems([tmp_path / name for name in given], tmp_path, inputs.endings(n))
    assert [stem.as_posix() for stem in found.values()] == wanted


def test_names_that_cannot_be_told_apart_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"results of .*a\.png and of another image would have"):
        inputs.stems(
            [tmp_path / name for name in ("a.png", "a.jpg", "a.png-1.png", "a.png-1.jpg")],
            tmp_path, ["", "-1", "-1.png"],
        )  # fmt: skip


@pytest.mark.usefixtures("quick")
def test_other_results_go_to_another_folder(workdir, tmp_path):
    """Another task, seed, input of the same name, or the same picture painted over."""
    one, two = picture(tmp_path / "one" / "x.png", 1), picture(tmp_path / "two" / "x.png", 2)
    run(workdir, "restore", f"--input={one}", *DENOISE)
    plain = tiny.files(workdir / "restored")
    others = [[f"--input={one}", *DENOISE, "--seed=1"], [f"--input={two}", *DENOISE],
              [f"--input={one}", "--task=deblur:size=3", "--method=ddnm", "--noise=0.1"],
              [f"--input={one}", *DENOISE, "--config.restore.steps=2"]]  # fmt: skip
    for flags in others:
        run(workdir, "restore", *flags)
    homes = sorted(path.name for path in workdir.glob("restored-*"))
    assert len(homes) == len(others)
    assert all(names(workdir / home) == ["x-beside.png", "x.png"] for home in homes)
    run(workdir, "restore", *others[1])  # the same again
    run(workdir, "restore", f"--input={one}", *DENOISE, "--config.restore.batch=9")
    assert sorted(path.name for path in workdir.glob("restored-*")) == homes
    assert tiny.files(workdir / "restored") == plain
    reports = [json.loads(path.read_text()) for path in workdir.glob("restoration*.json")]
    found = [one["rows"][0]["restored"] for one in reports]
    assert sorted(found) == sorted(["restored/x.png", *(f"{home}/x.png" for home in homes)])


@pytest.mark.usefixtures("quick")
def test_a_mask_painted_anew_is_another_result(workdir, tmp_path):
    """Under the same name."""
    photo, mask = picture(tmp_path / "x.png"), tmp_path / "mask.png"
    for level in (200, 255, 200):
        Image.fromarray(np.full((8, 8), level, np.uint8)).save(mask)
        run(workdir, "restore", f"--input={photo}", "--task=inpaint", f"--mask={mask}")
    assert names(workdir / "restored") == ["x-beside.png", "x.png"]
    assert len(list(workdir.glob("restored-*"))) == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("task", ["mask:kind=file,path={}", "denoise+blur:kind=file,path={}"])
def test_a_file_of_a_task_that_changed_is_another_result(workdir, tmp_path, task):
    photo, file = picture(tmp_path / "x.png"), tmp_path / "file.png"
    for level in (200, 255, 200):
        Image.fromarray(np.full((8, 8), level, np.uint8)).save(file)
        run(workdir, "restore", f"--input={photo}", f"--task={task.format(file)}")
    assert names(workdir / "restored") == ["x-beside.png", "x.png"]
    assert len(list(workdir.glob("restored-*"))) == 1


@pytest.mark.usefixtures("quick")
def test_benchmarks_of_other_settings_are_kept(workdir, monkeypatch):
    nothing = mock.Mock(side_effect=lambda w, seeds, *rest: np.zeros((len(seeds), 8, 8, 1)))
    nothing.costs.return_value = {"seconds": 1.0}
    monkeypatch.setattr(benchmark, "program", lambda *given: nothing)
    flags = ["--config.restore.metrics=('psnr',)", "--config.restore.methods=('ddnm',)"]
    for task in ("denoise", "colourise"):
        run(workdir, "restore", *flags, f"--config.restore.tasks=('{task}',)")
    run(workdir, "restore", *flags, "--config.restore.tasks=('denoise',)",
        "--config.restore.noise_std=0.2")  # fmt: skip
    for rows in (2, 4):  # of one mask, painted anew
        Image.fromarray(np.uint8(255 * (np.indices((8, 8))[0] < rows))).save(workdir / "mask.png")
        mask = f"mask:kind=file,path={workdir / 'mask.png'}"
        run(workdir, "restore", *flags, f"--config.restore.tasks=('{mask}',)")
    kept = [json.loads(path.read_text()) for path in workdir.glob("restoration*.json")]
    assert len(kept) == 5
    for found in kept:
        name = found["rows"][0]["picture"]
        assert made(workdir / name)["task"] == found["rows"][0]["task"]
    assert len({found["rows"][0]["picture"] for found in kept}) == 5


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_benchmarks_of_models_without_a_null_class(workdir, monkeypatch, dropout):
    """They get the images' own classes: with -1, which was never learned, they would make noise."""
    asked = []

    def program(*_):
        def run(weights, seeds, cond, *rest):
            asked.append(cond["label"])
            return np.zeros((len(seeds), 8, 8, 1))

        run.costs = lambda: {"seconds": 1.0}
        return run

    monkeypatch.setattr(benchmark, "program", program)
    run(workdir, "restore", "--config.restore.tasks=('denoise',)",
        "--config.restore.metrics=('psnr',)", "--config.restore.methods=('ddnm',)",
        f"--config.diffusion.label_dropout={dropout}")  # fmt: skip
    wanted = digits.dataset().heldout.labels[:6] if not dropout else [-1] * 6
    assert [len(labels) for labels in asked] == [4, 2]
    np.testing.assert_array_equal(np.concatenate(asked), wanted)


# --- Evaluations ---


@pytest.mark.usefixtures("quick")
def test_evaluations_of_other_settings_are_kept(workdir):
    few = "--config.evaluate.images=16"
    for flags in ([few], [few, "--config.evaluate.seed=9"], [few]):
        run(workdir, "evaluate", *flags)
    found = {path: json.loads(path.read_text()) for path in workdir.glob("evaluation*.json")}
    assert sorted(f["evaluate"]["seed"] for f in found.values()) == [9, 500]
    assert found[workdir / "evaluation.json"]["evaluate"]["seed"] == 500


@pytest.mark.usefixtures("quick")
def test_arrays_of_other_settings_are_kept(workdir):
    """What is in their names, and what is not."""
    flags = ["--config.evaluate.images=16", "--npz"]
    for more in ([], ["--config.evaluate.seed=9"], ["--config.sample.guidance=2.0"], []):
        run(workdir, "evaluate", *flags, *more)
    arrays = sorted((workdir / "evaluation").glob("samples-*.npz"))
    assert len(arrays) == 3
    assert len({np.load(path)["arr_0"].tobytes() for path in arrays}) == 3
    found = {(made(path)["seed"], made(path)["settings"]["row"]["guidance"]) for path in arrays}
    assert found == {(500, 1.0), (9, 1.0), (500, 2.0)}


def test_a_begun_array_of_other_settings_is_not_gone_on_with(tmp_path):
    """It was interrupted: there is its record and no array yet."""
    path = tmp_path / "samples-step0.npz"
    one, two = (provenance.record("evaluate", 0, seed=seed) for seed in (1, 2))
    provenance.write_beside(path, one)
    assert provenance.free(path, one) == path
    assert provenance.free(path, two) == tmp_path / f"samples-step0-{provenance.digest(two)}.npz"
    assert provenance.free(path, one | {"version": "9.9"}) == path  # the result is the same


def test_a_row_that_fails_does_not_end_a_sweep(workdir, monkeypatch):
    plain = model.TrainedModel.sample_cond

    def limited(self, cond, n, seed, **options):
        if options["guidance"] == 2.0:
            raise SamplingError("the sample of seed 3 is not finite")
        return plain(self, cond, n, seed, **options)

    monkeypatch.setattr(model.TrainedModel, "sample_cond", limited)
    flags = ["--config.evaluate.images=16", "--config.evaluate.sweep.guidance=(1.0,2.0)"]
    run(workdir, "evaluate", *flags)
    found = json.loads((workdir / "evaluation.json").read_text())
    assert found["best"] == 0
    assert [row["results"] == {} for row in found["rows"]] == [False, True]
    assert found["rows"][1]["failed"] == "the sample of seed 3 is not finite"
    assert (workdir / "evaluation.png").exists()


# --- Metrics in the wrong place ---


@pytest.mark.parametrize("name", ["pixel_frechet", "class_accuracy", "inception_score", "fid"])
def test_metrics_of_sets_are_refused_at_the_start(workdir, capsys, monkeypatch, name):
    """Before any data are read."""
    monkeypatch.setattr(benchmark, "compare", None)
    flags = ["--config.restore.tasks=('denoise',)", f"--config.restore.metrics=('psnr','{name}')"]
    code, found = fails(capsys, f"--workdir={workdir}", "--mode=restore", *flags)
    start = f"config.restore.metrics: {name} measures sets of images; methods are compared on pairs"
    assert (code, found[: len(start)]) == (2, start)


def test_metrics_of_pairs_are_refused_before_sampling(workdir, capsys, monkeypatch):
    monkeypatch.setattr(model.TrainedModel, "sample_cond", None)
    flags = [f"--workdir={workdir}", "--mode=evaluate", "--config.evaluate.metrics=psnr"]
    code, found = fails(capsys, *flags)
    assert (code, found) == (
        2, "config.evaluate.metrics: psnr compares pairs of images: --truth is required"
    )  # fmt: skip


# --- One broken picture among many ---


def broken(home):
    for i, name in enumerate("acd"):
        picture(home / f"{name}.png", i)
    (home / "b.png").write_bytes((home / "a.png").read_bytes()[:50])
    return home


def failed(capsys, workdir, *flags):
    """(exit code, the line on stderr, rows of restoration.json)."""
    code = tiny.call(f"--workdir={workdir}", "--mode=restore", *flags)
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    rows = json.loads((workdir / "restoration.json").read_text())["rows"]
    return code, error, {pathlib.Path(row["input"]).name: row.get("failed") for row in rows}


@pytest.mark.usefixtures("quick")
def test_a_broken_picture_does_not_stop_the_others(workdir, tmp_path, capsys):
    home = broken(tmp_path / "photos")
    code, error, rows = failed(capsys, workdir, f"--input={home}", *DENOISE)
    assert code == 1
    assert error.startswith("error: 1 of 4 images not restored: b.png: ")
    assert {name for name, why in rows.items() if why} == {"b.png"}
    assert str(home / "b.png") in rows["b.png"]
    assert [n for n in names(workdir / "restored") if "beside" not in n] == [
        "a.png", "c.png", "d.png",
    ]  # fmt: skip


@pytest.mark.usefixtures("quick")
def test_a_name_that_no_result_can_have_does_not_stop_the_others(workdir, tmp_path, capsys):
    """Nothing of it is written: restored/NAME.png alone would fit."""
    long = "\u00e4" * 123  # two bytes each
    for i, name in enumerate(("a.png", f"{long}.png", f"{long[:-2]}.png")):
        picture(tmp_path / "photos" / name, i)
    code, error, rows = failed(capsys, workdir, f"--input={tmp_path / 'photos'}", *DENOISE)
    assert code == 1
    assert f"1 of 3 images not restored: {long}.png: {long}-beside.png would be a longer" in error
    assert [name for name, why in rows.items() if why] == [f"{long}.png"]
    assert len(names(workdir / "restored")) == 4


def test_a_mask_that_does_not_fit_one_of_them(workdir, tmp_path, capsys):
    home = tmp_path / "photos"
    for i, (name, size) in enumerate((("a.png", 9), ("b.png", 8), ("c.png", 8))):
        picture(home / name, i, size)
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4, 2:4] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    flags = [f"--input={home}", "--task=inpaint", "--noise=0", f"--mask={tmp_path / 'mask.png'}"]
    code, error, rows = failed(capsys, workdir, *flags)
    assert (code, error.partition(": a.png: ")[0]) == (1, "error: 1 of 3 images not restored")
    assert "8x8" in rows["a.png"]
    assert (rows["b.png"], rows["c.png"]) == (None, None)


@pytest.mark.parametrize(
    ("error", "why"),
    [(restoring.RestorationError("the restored image is not finite"), "not finite"),
     (MemoryError(), "too large for this machine's memory")], ids=["finite", "memory"],
)  # fmt: skip
def test_a_result_that_cannot_be(quick, workdir, tmp_path, capsys, monkeypatch, error, why):
    """Of one of two."""
    picture(tmp_path / "photos" / "a.png")
    picture(tmp_path / "photos" / "b.png", 1, 9)
    plain = model.TrainedModel.restore

    def restore(self, image, *given, **options):
        if image.shape[0] == 9:
            raise error
        return plain(self, image, *given, **options)

    monkeypatch.setattr(model.TrainedModel, "restore", restore)
    code, found, rows = failed(capsys, workdir, f"--input={tmp_path / 'photos'}", *DENOISE)
    assert code == 1
    assert why in found
    assert why in rows["b.png"]
    assert names(workdir / "restored") == ["a-beside.png", "a.png"]


def test_where_all_fail_it_is_one_line_and_nothing_is_left(workdir, tmp_path, capsys):
    home = broken(tmp_path / "photos")
    before = tiny.files(workdir)
    flags = [f"--workdir={workdir}", "--mode=restore", f"--input={home}"]
    for flag, code, start in (
        ("--task=sharpen", 2, "task: name: there is no operator"),
        ("--method=best", 2, "method: there is no method 'best'"),
        ("--label=77", 2, "label: 77 is not in -1"),
        ("--seed=-1", 2, "--seed: -1 is less than 0"),
    ):
        assert tiny.call(*flags, flag) == code
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        if flag != "--task=sharpen":
            assert error.startswith(f"error: {start}")
    assert tiny.files(workdir) == before


@pytest.mark.usefixtures("quick")
def test_results_of_a_workdir_in_the_folder_are_not_restored_again(tmp_path, untrained, capsys):
    """--input=. in the folder where the runs are."""
    shutil.copytree(untrained, tmp_path / "run")
    picture(tmp_path / "photo.png")
    for _ in range(2):
        run(tmp_path / "run", "restore", f"--input={tmp_path}", *DENOISE)
    assert names(tmp_path / "run" / "restored") == ["photo-beside.png", "photo.png"]
    assert "left out: 1 made by runs of vitdiff_jax (run/)" in capsys.readouterr().out


def test_which_folders_are_inputs(tmp_path):
    workdir = tmp_path / "run"
    mine = picture(workdir / "restored_by_hand" / "a.png")
    picture(workdir / "restored-0a1b2c3d" / "a.png")
    assert inputs.find(mine.parent, workdir) == [mine]
    with pytest.raises(ConfigError, match="is in the output folder"):
        inputs.find(workdir / "restored-0a1b2c3d", workdir)


# --- What a record says ---


def test_an_autoencoder_is_recorded_by_its_content(tmp_path):
    """Another one under the same name makes other pictures, the same one elsewhere does not."""
    (tmp_path / "else").mkdir()
    found = []
    for folder, content in ((".", b"one"), (".", b"two"), ("else", b"one")):
        path = tmp_path / folder / "vae.safetensors"
        path.write_bytes(content)
        settings = config_lib.complete(tiny.config(latent=dict(autoencoder=str(path))))
        found.append(provenance.of_sampling(settings))
    digests = [provenance.digest(provenance.record("sample", 0, **one)) for one in found]
    assert digests[0] == digests[2] != digests[1]
    assert str(tmp_path) not in json.dumps(found)


def test_an_autoencoder_in_a_bucket_is_fetched_once(tmp_path, monkeypatch):
    """And again, if the copy was deleted meanwhile."""
    copy = tmp_path / "vae"
    fetch = mock.Mock(side_effect=lambda path: [copy.write_bytes(b"one"), copy][1])
    monkeypatch.setattr(paths, "local_copy", fetch)
    settings = config_lib.complete(tiny.config(latent=dict(autoencoder="gs://bucket/vae")))
    first = provenance.of_sampling(settings)
    assert (provenance.of_sampling(settings), fetch.call_count) == (first, 1)
    copy.unlink()
    assert (provenance.of_sampling(settings), fetch.call_count) == (first, 2)
