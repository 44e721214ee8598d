"""`--mode=statistics`, and files of statistics as references: its own, and those of others."""

import json
import urllib.request

import numpy as np
import pytest

from tests import few_digits, tiny
from tests.evaluation import weights
from tests.evaluation.test_frechet import by_sqrtm
from tests.modes.test_evaluate import refused, report_of, value
from tests.test_main import fails
from vitdiff_jax.data import pipeline
from vitdiff_jax.evaluation import networks
from vitdiff_jax.evaluation.metric import Batch, Setting
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.inference import evaluator
from vitdiff_jax.interop.images import save_npz
from vitdiff_jax.runtime import parallel

METRICS = ("fid", "sfid", "kid", "precision_recall", "inception_score")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    return tiny.write(path, data=dict(name="tests.few_digits"), evaluate=dict(metrics=METRICS))


@pytest.fixture
def small(monkeypatch):
    """A network of five numbers an image in the place of Inception; see `weights`."""
    monkeypatch.setattr(networks, "inception", weights.small)


@pytest.fixture(scope="module")
def looked():
    """A function: images -> what that network says of them."""
    network = weights.small(Setting(lambda: None, parallel.make_mesh()))
    return lambda images: network(Batch(images))


@pytest.fixture(scope="module")
def real():
    dataset = few_digits.dataset()
    return {s: pipeline.stacked(getattr(dataset, s))["image"] for s in ("train", "heldout")}


@pytest.fixture
def samples(tmp_path):
    """(flag, images)."""
    images = np.random.default_rng(0).integers(0, 256, (25, 8, 8, 1), np.uint8)
    save_npz(tmp_path / "samples.npz", images)
    return f"--samples={tmp_path / 'samples.npz'}", images


def made(workdir, *flags):
    """The file that --mode=statistics writes."""
    assert tiny.call(*flags, f"--workdir={workdir}", "--mode=statistics") == 0
    (path,) = (workdir / "statistics").glob("*.npz")
    return path


def gaussian(rows):
    return rows.mean(0), np.cov(np.float64(rows).T)


def test_what_a_file_holds(tmp_path, config, small, looked, real):
    """In ADM's layout, for everyone's tools."""
    path = made(tmp_path, config)
    assert path.name == "train-inception-2015-tf1.npz"
    rows = looked(real["train"])
    with np.load(path, allow_pickle=False) as file:
        found = dict(file)
    assert found.keys() == {"about", "mu", "sigma", "mu_s", "sigma_s", "features"}
    for output, suffix in (("pool", ""), ("spatial", "_s")):
        mean, covariance = gaussian(rows[output])
        np.testing.assert_allclose(found[f"mu{suffix}"], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[f"sigma{suffix}"], covariance, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["features"], rows["pool"], atol=1e-5)
    about = json.loads(str(found["about"]))
    assert about["network"] == "inception-2015-tf1"
    assert (about["split"], about["count"], about["size"]) == ("train", 40, [8, 8, 1])
    assert (about["crop"], about["resize"]) == ("none", "none")
    assert about["data"]["name"] == "tests.few_digits"
    assert "jax" in about["versions"]


def test_so_many_at_random(tmp_path, config, small, looked, real):
    path = made(tmp_path, config, "--split=heldout", "--n=10")
    assert path.name.startswith("heldout-")
    features, rows = np.load(path)["features"], looked(real["heldout"])["pool"]
    nearest = np.abs(features[:, None] - rows).max(-1)
    assert (nearest.min(1) < 1e-5).all()
    which = nearest.argmin(1)
    assert len(set(which)) == 10
    assert sorted(which) != list(range(10))


def test_other_statistics_are_another_file(tmp_path, config, small):
    """Of fewer images; each says in the .json file beside it how it was made."""
    first = made(tmp_path, config, "--n=10")
    kept = first.read_bytes()
    for n in (20, 20, 10):
        flags = [config, f"--workdir={tmp_path}", "--mode=statistics", f"--n={n}"]
        assert tiny.call(*flags) == 0
    assert len(list(first.parent.glob("*.npz"))) == 2
    assert first.read_bytes() == kept
    found = [json.loads(p.read_text())["made"] for p in first.parent.glob("*.json")]
    assert sorted(about["count"] for about in found) == [10, 20]
    assert {about["mode"] for about in found} == {"statistics"}


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_file_is_as_good_as_the_split(tmp_path, config, small, samples, split):
    """All metrics: the same numbers, without looking at a real image but for the floor."""
    path = made(tmp_path / "made", config, f"--split={split}")
    by_file, by_split = (
        report_of(tmp_path / "run", config, samples[0], f"--config.evaluate.reference={reference}")
        for reference in (path, split)
    )
    assert len(by_file["rows"][0]["results"]) == len(METRICS)
    for name, values in by_split["rows"][0]["results"].items():
        assert by_file["rows"][0]["results"][name] == pytest.approx(values, rel=1e-9)
    assert by_file["reference"]["split"] == split
    assert by_file["reference"]["file"] == str(path)


def test_files_of_others(tmp_path, config, small, samples, looked):
    """`mu` and `sigma` alone, as pytorch-fid and JiT have them: for FID that is all."""
    random = np.random.default_rng(1)
    mean, covariance = random.standard_normal(5), np.cov(random.standard_normal((5, 9)))
    path = tmp_path / "theirs.npz"
    np.savez(path, mu=mean, sigma=covariance)
    flags = [config, samples[0], f"--config.evaluate.reference={path}"]
    report = report_of(tmp_path / "run", *flags, "--config.evaluate.metrics=fid")
    rows = looked(samples[1])["pool"]
    wanted = by_sqrtm(gaussian(rows), (mean, covariance))
    found = value(report["rows"][0], "fid/inception-2015-tf1")
    assert found == pytest.approx(wanted, rel=1e-4)
    assert report["real_images"]["of"] == "25 held-out images"


@pytest.mark.parametrize(
    ("metric", "lacking"), [("sfid", "spatial for moments"), ("kid", "pool for vectors")]
)
def test_files_that_lack_something(tmp_path, config, small, samples, capsys, metric, lacking):
    path = tmp_path / "theirs.npz"
    np.savez(path, mu=np.zeros(5), sigma=np.eye(5))
    flags = [config, samples[0], f"--config.evaluate.reference={path}"]
    flags += [f"--workdir={tmp_path / 'run'}", f"--config.evaluate.metrics={metric}"]
    _, found = refused(capsys, *flags)
    assert found.startswith(f"{path}: lacks {lacking}, required by a metric of config.evaluate")


def test_images_as_a_reference_are_measured_once(
    tmp_path, config, small, samples, real, monkeypatch
):
    """Those of the split give what the split gives, by any metric."""
    path = tmp_path / "images.npz"
    save_npz(path, real["heldout"])
    metrics = (*METRICS, "pixel_frechet")
    flags = [config, samples[0], f"--config.evaluate.metrics={metrics}"]
    by_images, by_split = (
        report_of(tmp_path / "run", *flags, f"--config.evaluate.reference={reference}")
        for reference in (path, "heldout")
    )
    for name, values in by_split["rows"][0]["results"].items():
        assert by_images["rows"][0]["results"][name] == pytest.approx(values, rel=1e-9)
    monkeypatch.setattr(evaluator.image_files.Npz, "read", None)
    settings = config_lib.load(config.removeprefix("--config="))
    settings.evaluate.update(reference=str(path), metrics=metrics)
    again = evaluator.Evaluator(settings, tmp_path / "run", parallel.make_mesh())
    for metric in again._compared():
        assert again.reference(metric)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(mu=np.zeros((5, 5))), "mu has invalid shape (5, 5)"),
        (dict(sigma=np.eye(4)), "mu has shape (5,), but sigma (4, 4)"),
        (dict(mu=np.full(5, np.nan)), "mu is not finite"),
        (dict(about="{"), "the entry about is damaged"),
        (dict(about='{"network": "vgg16-lpips"}'), "has statistics of vgg16-lpips, but fid/inc"),
        (dict(mu=np.array([{}])), "not a readable .npz file: Object arrays cannot be"),
    ],
    ids=["shape", "sizes", "NaN", "about", "network", "pickle"],
)
def test_references_that_are_none(tmp_path, config, small, samples, capsys, change, message):
    path = tmp_path / "file.npz"
    np.savez(path, **dict(mu=np.zeros(5), sigma=np.eye(5)) | change)
    flags = [config, f"--workdir={tmp_path / 'run'}", samples[0], "--config.evaluate.metrics=fid"]
    _, found = refused(capsys, *flags, f"--config.evaluate.reference={path}")
    assert found.startswith(f"{path}: {message}")


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_references(tmp_path, config, small, samples, capsys, packed):
    path = tmp_path / "file.npz"
    (np.savez_compressed if packed else np.savez)(path, mu=np.arange(5.0), sigma=np.eye(5))
    data = bytearray(path.read_bytes())
    changed = data.copy()
    changed[data.index(b"sigma.npy") + len("sigma.npy") + 20] ^= 0xFF  # where its data starts
    flags = [config, f"--workdir={tmp_path / 'run'}", samples[0], "--config.evaluate.metrics=fid"]
    for bad in (b"", b"mu, sigma", data[: len(data) // 2], changed):
        path.write_bytes(bad)
        _, found = refused(capsys, *flags, f"--config.evaluate.reference={path}")
        assert found.startswith(f"{path}: not a readable .npz file")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split=test"], "--split: 'test' is not one of heldout, train"),
        (["--n=1"], "--n: 1 is less than 2"),
        (
            ["--config.evaluate.metrics=pixel_frechet"],
            "config.evaluate.metrics: none of them uses a published network",
        ),
    ],
    ids=str,
)
def test_impossible_wishes(tmp_path, config, small, capsys, flags, message):
    workdir = tmp_path / "run"
    code, found = fails(capsys, config, f"--workdir={workdir}", "--mode=statistics", *flags)
    assert (code, found[: len(message)]) == (2, message)
    assert not workdir.exists()


def test_without_metrics_it_is_inception(tmp_path, config, small):
    made(tmp_path, config, "--config.evaluate.metrics=()")


def test_weights_that_cannot_be_had(tmp_path, config, monkeypatch, capsys):
    """No network: the message says what to do. Nothing is left behind in the cache."""

    def urlopen(*args, **options):
        raise urllib.request.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, found = fails(capsys, config, f"--workdir={tmp_path / 'run'}", "--mode=statistics")
    assert code == 1
    assert found.startswith(f"cannot download {networks.PUBLISHED.url} (")
    assert "--config.evaluate.inception=FILE" in found
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    assert not (tmp_path / "run").exists()


def test_weights_that_are_wrong(tmp_path, config, capsys):
    """More of them are in `interop/test_weights`."""
    path = tmp_path / "inception.safetensors"
    flags = [config, f"--workdir={tmp_path / 'run'}", "--mode=statistics"]
    for message in ("no such file", "damaged ("):
        code, found = fails(capsys, *flags, f"--config.evaluate.inception={path}")
        assert (code, found.startswith(f"{path}: {message}")) == (1, True)
        path.write_text("weights")


@pytest.mark.slow
def test_inception_itself(tmp_path, config):
    """Its weights as they are published in all but their values: 2048, 2023 numbers an image."""
    path = weights.write(tmp_path / "inception.safetensors")
    flags = ["--split=heldout", "--n=3", f"--config.evaluate.inception={path}"]
    with np.load(made(tmp_path / "run", config, *flags, "--config.evaluate.metrics=kid")) as file:
        assert file["features"].shape == (3, 2048)
        assert (file["mu"].shape, file["sigma_s"].shape) == ((2048,), (2023, 2023))
        np.testing.assert_allclose(file["mu"], file["features"].mean(0), rtol=1e-5, atol=1e-6)
        assert len(np.unique(file["features"])) > 1000
        assert "299" in json.loads(str(file["about"]))["resize"]
