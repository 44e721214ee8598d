"""Models that come with the package: loaded, sampled, restored with, refused; and what ships."""

import hashlib
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import vitdiff_jax
from tests import tiny
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import loading, pretrained, provenance
from vitdiff_jax.inference.model import TrainedModel
from vitdiff_jax.interop.weights import WeightsError
from vitdiff_jax.modes import export, sample
from vitdiff_jax.runtime import paths
from vitdiff_jax.training import finetune

pytestmark = pytest.mark.usefixtures("plain")
HOME = "runs/pretrained-small"


@pytest.fixture
def package(untrained, tmp_path, monkeypatch):
    """A folder of the package that has one model, "small"; the current one is empty."""
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "package")
    (tmp_path / "package").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    data = [{"what": "numbers", "licence": "none", "sha256": "0"}]
    export.ship(untrained, "small", licence="Free", data=data, measured={"speed": 1})
    return tmp_path / "package"


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def refused(capsys, *flags):
    """(exit code, the one line of the error)."""
    capsys.readouterr()
    code, error = tiny.call(*flags), capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return code, error.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize(("name", "size"), [("digits", 700_000), ("photos", 12_000_000)])
def test_what_ships(name, size):
    """What its .json says is so: the file, its size and numbers, in float32 when loaded."""
    assert name in pretrained.names()
    facts = json.loads((pretrained.FOLDER / f"{name}.json").read_text())
    data = (pretrained.FOLDER / f"{name}.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest() == facts["sha256"]
    assert len(data) < size
    model = vitdiff_jax.load(f"pretrained:{name}")
    leaves = jax.tree.leaves(model.params)
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}
    assert sum(leaf.size for leaf in leaves) == facts["parameters"] < 6e6
    assert (model.step, model.licence) == (facts["step"], facts["licence"])
    assert all({"what", "licence", "sha256"} <= row.keys() for row in facts["data"])
    trained, shipped = model.experiment.config, config_lib.load(f"configs/{name}.py")
    assert config_lib.differences(trained, shipped) == []


@pytest.mark.slow
def test_photographs_are_denoised_better_than_by_total_variation():
    """A patch of a photograph that the model has not seen, with noise 0.1, by one network call."""
    from skimage.data import chelsea
    from skimage.restoration import denoise_tv_chambolle

    model, noise = vitdiff_jax.load("pretrained:photos"), np.random.default_rng(0)
    x = np.float32(chelsea()[100:164, 150:214] / 127.5 - 1)
    y = x + 0.1 * noise.standard_normal(x.shape).astype(np.float32)
    t = np.full(1, 0.1 / 1.1, np.float32)
    found = model.experiment.denoiser(model.params, {})(y[None] / 1.1, t)[0]
    weights = (0.05, 0.08, 0.1, 0.15)
    classical = min(
        np.mean((denoise_tv_chambolle(y, weight=weight, channel_axis=-1) - x) ** 2)
        for weight in weights
    )
    assert np.mean((np.asarray(found) - x) ** 2) < 0.8 * classical


@pytest.mark.slow
def test_digits_are_drawn(capsys):
    """A classifier that is not ours knows which they should be."""
    from sklearn.datasets import load_digits
    from sklearn.neighbors import KNeighborsClassifier

    model = vitdiff_jax.load("pretrained:digits")
    labels = np.arange(10).repeat(2)
    found = model.sample(label=labels.tolist(), n=20, steps=8, batch=20)
    known = KNeighborsClassifier(3).fit(*load_digits(return_X_y=True))
    assert (known.predict(found.reshape(20, 64) / 255 * 16) == labels).mean() >= 0.9


@pytest.mark.slow
def test_samples_are_those_of_parameters_rounded_to_half(package, untrained):
    whole, half = vitdiff_jax.load(untrained), vitdiff_jax.load("pretrained:small")
    rounded = jax.tree.map(
        lambda a: np.asarray(a).astype(np.float16).astype(np.float32), whole.params
    )
    tiny.assert_same(tiny.arrays(half.params), tiny.arrays(rounded))
    by_hand = TrainedModel(whole.experiment, jax.device_put(rounded), 0, whole.mesh)
    found, wanted = half.sample(n=8, label=3), by_hand.sample(n=8, label=3)
    np.testing.assert_array_equal(found, wanted)
    exact = whole.sample(n=8, label=3).astype(int)
    assert np.abs(found - exact).max() <= 2  # of 255


def test_a_file_that_has_changed_is_refused(package, capsys):
    path = package / "small.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    code, line = refused(capsys, "--workdir=pretrained:small", "--mode=sample")
    assert code == 1
    assert line.startswith(f"{path}: damaged: its SHA-256 is ")
    with pytest.raises(WeightsError, match="damaged"):
        vitdiff_jax.load("pretrained:small")
    assert not any(package.parent.joinpath("here").iterdir())


@pytest.mark.parametrize("name", ["", "none", "Small", "small/", "../small", "small.json"])
def test_an_unknown_name_is_answered_with_the_known_ones(package, capsys, name):
    line = f"pretrained:{name}: there is no such model in this package; it has pretrained:small"
    for mode in ("sample", "train", "evaluate", "report"):
        assert refused(capsys, f"--workdir=pretrained:{name}", f"--mode={mode}") == (2, line)
    with pytest.raises(ConfigError, match="it has pretrained:small"):
        vitdiff_jax.load(f"pretrained:{name}")
    assert not any(package.parent.joinpath("here").iterdir())


def test_the_command_writes_into_a_workdir_of_its_results(package, capsys):
    """Below the current folder, which the terminal names; the package stays as it is."""
    before = tiny.files(package)
    flags = "--workdir=pretrained:small", "--mode=sample", "--n=2", "--label=3"
    assert tiny.call(*flags) == 0
    assert f"pretrained:small: step 0, Free; results go into {HOME}\n" in capsys.readouterr().out
    here = package.parent / "here"
    path = here / HOME / "samples" / "step0-label-3-seed0-n2.png"
    made, facts = provenance.read(path), json.loads((package / "small.json").read_text())
    assert made["pretrained"] == {"name": "small", "sha256": facts["sha256"]}
    assert facts["data"][0]["what"] == "numbers"
    written = tiny.files(here)
    assert tiny.call(*flags) == 0
    assert tiny.files(here).keys() == written.keys()
    guided = path.with_name("step0-label-3-guidance2-seed0-n2.png")
    assert tiny.call(*flags, "--config.sample.guidance=2") == 0
    assert guided.exists()
    assert path.read_bytes() == written[str(path.relative_to(here))]
    assert tiny.files(package) == before


def test_a_workdir_of_results_stands_for_its_model(package, capsys):
    assert tiny.call("--workdir=pretrained:small", "--mode=export") == 0
    here, model = package.parent / "here", vitdiff_jax.load("pretrained:small")
    assert vitdiff_jax.load(HOME).digest == model.digest
    assert vitdiff_jax.load(HOME).origin == model.origin
    assert tiny.call(f"--workdir={here / HOME}", "--mode=sample", "--n=1") == 0
    (file,) = (here / HOME / "export").iterdir()
    again = here / "again"
    assert tiny.call("--mode=import", f"--source={file}", f"--workdir={again}") == 0
    assert vitdiff_jax.load(again).digest == model.digest
    assert (again / "LICENCE.txt").read_text() == "Free"


def test_the_files_of_the_package_can_be_imported(package):
    source, again = package / "small.safetensors", package.parent / "again"
    assert tiny.call("--mode=import", f"--source={source}", f"--workdir={again}") == 0
    assert vitdiff_jax.load(again).digest == vitdiff_jax.load("pretrained:small").digest


def test_it_is_not_trained_in_its_place(package, config, capsys):
    """The line names the way."""
    assert tiny.call("--workdir=pretrained:small", "--mode=export") == 0
    before = tiny.files(package.parent)
    for place in ("pretrained:small", HOME):
        code, line = refused(capsys, config, f"--workdir={place}")
        assert (code, line) == (
            2,
            f"{place}: is a model of the package; use another --workdir, and to train it further"
            " --config.train.init_from=pretrained:small",
        )
        with pytest.raises(ConfigError, match="is a model of the package"):
            vitdiff_jax.fit(tiny.config(), place)
    assert refused(capsys, "--workdir=pretrained:small")[0] == 2
    assert tiny.files(package.parent) == before


def test_training_begins_with_it(package, tmp_path, capsys):
    """With its licence."""
    changes = dict(model=tiny.PLAIN, train=dict(init_from="pretrained:small"))
    run = tiny.run(tiny.config(**changes), tmp_path / "run")
    finetune.check(run.config, run.workdir)
    wanted = tiny.arrays(vitdiff_jax.load("pretrained:small").params)
    tiny.assert_same(tiny.arrays(run.state().params), wanted)
    assert "initialising from pretrained:small, step 0\n" in capsys.readouterr().out
    finetune.copy_licence(run.config, run.workdir)
    assert (tmp_path / "run" / "LICENCE.txt").read_text() == "Free"


def test_it_guides(package, untrained):
    settings = config_lib.read(paths.resolve(untrained / "config.json"))
    settings.sample.guide_with = "pretrained:small"
    _, params = loading.load(untrained, settings).weights
    wanted = tiny.arrays(vitdiff_jax.load("pretrained:small").params)
    tiny.assert_same(tiny.arrays(params), wanted)


def test_another_ema_or_config_is_refused(package, tmp_path):
    with pytest.raises(ConfigError, match=r"pretrained:small has the EMA 0\.5 alone, not 0\.99"):
        vitdiff_jax.load("pretrained:small", ema=0.99)
    other = config_lib.complete(tiny.config(model=tiny.PLAIN, diffusion=tiny.UNIFORM))
    with pytest.raises(ConfigError, match="pretrained:small was trained with another config"):
        vitdiff_jax.load("pretrained:small", other)


def test_a_photograph_is_restored_without_config_and_workdir(package, photo, monkeypatch, capsys):
    """By the model for that; until it ships, the line says what does."""
    flags = "--mode=restore", f"--input={photo}", "--task=denoise"
    line = "pretrained:photos: there is no such model in this package; it has pretrained:small"
    assert refused(capsys, *flags) == (2, line)
    monkeypatch.setitem(pretrained.DEFAULTS, "restore", "small")
    before = photo.read_bytes()
    assert tiny.call(*flags) == 0
    assert f"{photo.name} -> {HOME}/restored/photo.png: denoise by" in capsys.readouterr().out
    made = provenance.read(paths.resolve(f"{HOME}/restored/photo.png"))
    assert made["pretrained"]["name"] == "small"
    assert photo.read_bytes() == before


def test_a_command_that_is_refused_leaves_nothing(package, photo, capsys):
    for flags in (["--mode=sample", "--label=nine"], ["--mode=restore", f"--input={photo}x"]):
        code, _ = refused(capsys, "--workdir=pretrained:small", *flags)
        assert code in (1, 2)
        assert not any(package.parent.joinpath("here").iterdir())


def test_a_folder_of_something_else_is_left_alone(package, capsys):
    home = package.parent / "here" / HOME
    home.mkdir(parents=True)
    (home / "letter.txt").write_text("mine")
    before = tiny.files(home)
    code, line = refused(capsys, "--workdir=pretrained:small", "--mode=sample", "--n=1")
    assert code == 2
    assert line.startswith(f"{HOME}: is for results of pretrained:small, but holds something else")
    assert tiny.files(home) == before


def test_where_nothing_can_be_written_nothing_is_begun(package, monkeypatch, capsys):
    """A file in place of the folder: permissions would not stop root."""
    (package.parent / "here" / "runs").write_text("mine")
    monkeypatch.setattr(sample, "load", lambda *given: pytest.fail("it has begun"))
    code, line = refused(capsys, "--workdir=pretrained:small", "--mode=sample", "--n=1")
    assert code == 1
    assert line.startswith(f"{HOME}: cannot be written (")


def test_a_result_of_another_command_meanwhile_keeps_its_workdir(package):
    """One without results removes the folder that it has made, and another still writes there."""
    home = package.parent / "here" / HOME
    shipped = pretrained.find("pretrained:small")
    with pretrained.opened(shipped):
        shutil.rmtree(home)
        (home / "samples").mkdir(parents=True)
        (home / "samples" / "1.png").write_bytes(b"")
    assert vitdiff_jax.load(home).origin == shipped.origin


def test_a_broken_mark_is_named(package):
    here = package.parent / "here"
    (here / pretrained.MARK).write_text("{")
    with pytest.raises(ConfigError, match=f"{here}/{pretrained.MARK}: "):
        vitdiff_jax.load(here)
    (here / pretrained.MARK).write_text('{"name": "gone"}')
    with pytest.raises(ConfigError, match="pretrained:gone: there is no such model"):
        vitdiff_jax.load(here)


def test_numbers_beyond_half_precision_do_not_ship(package, tmp_path):
    large = tiny.save(tmp_path / "large", tiny.config(model=tiny.PLAIN), scale=1e6)
    with pytest.raises(ValueError, match="not finite in float16"):
        export.ship(large, "large", licence="", data=(), measured={})
    assert pretrained.names() == ["small"]


@pytest.mark.slow
def test_a_model_is_evaluated(package):
    flags = "--config.evaluate.images=20", "--config.sample.batch=16"
    assert tiny.call("--workdir=pretrained:small", "--mode=evaluate", *flags) == 0
    found = json.loads((package.parent / "here" / HOME / "evaluation.json").read_text())
    assert found["made"]["pretrained"]["name"] == "small"


@pytest.mark.extra
def test_the_wheel_has_them(tmp_path, monkeypatch):
    """Built as an installer builds it."""
    import zipfile

    build = pytest.importorskip("hatchling.build")
    monkeypatch.chdir(tiny.REPOSITORY)
    with zipfile.ZipFile(tmp_path / build.build_wheel(str(tmp_path))) as wheel:
        for path in pretrained.FOLDER.iterdir():
            assert wheel.read(f"vitdiff_jax/pretrained/{path.name}") == path.read_bytes()
