"""Runs in buckets do what they do in folders; see `conftest` for the servers."""

import json
import shutil

import numpy as np
import pytest
from etils import epath
from PIL import Image

import vitdiff_jax
from tests import tiny
from tests.data import homes
from tests.runtime import test_checkpoint
from vitdiff_jax.evaluation import networks
from vitdiff_jax.experiment import codec
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.interop import weights
from vitdiff_jax.operators import blur, mask
from vitdiff_jax.runtime import bucket as bucket_lib
from vitdiff_jax.runtime import checkpoint, paths
from vitdiff_jax.runtime.checkpoint import SUMS, CheckpointError, Checkpoints

CHANGES = dict(
    model=dict(depth=1, class_tokens=0), train=dict(steps=60),
    log=dict(every=1, sample_every=30), evaluate=dict(metrics=("pixel_frechet",), images=8),
)  # fmt: skip
LAST = {"gs://bucket": "commit_success.txt", "s3://bucket": SUMS}
"""The last file of a checkpoint that is written: without it there is none."""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("config") / "tiny.py", **CHANGES)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, config):
    """A run in a folder, without a break."""
    workdir = tmp_path_factory.mktemp("runs")
    assert tiny.call(config, f"--workdir={workdir}") == 0
    return workdir


@pytest.fixture(scope="module")
def run(bucket, config):
    """The same in a bucket: it was killed after step 10, and then went on."""
    workdir = paths.resolve(f"{bucket}/runs/killed")
    flags = config, f"--workdir={workdir}"
    with tiny.started("-m", "vitdiff_jax.main", *flags) as process:
        tiny.until((workdir / "checkpoints" / "10" / LAST[bucket]).exists, process)
        process.kill()
        process.wait()
    assert 10 <= len(tiny.logged(workdir)) < 60
    code, out, _ = homes.run(*flags)
    assert code == 0, out
    assert [line for line in out.splitlines() if line.startswith("resuming at step ")] != []
    return workdir


def named(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_a_killed_run_goes_on_bitwise_and_leaves_what_it_does_in_a_folder(run, unbroken):
    settings = tiny.config(**CHANGES)
    tiny.assert_same(tiny.saved(settings, run), tiny.saved(settings, unbroken))
    assert tiny.logged(run) == tiny.logged(unbroken) == list(range(1, 61))
    assert named(run / "checkpoints") == ["40", "50", "60"]
    events = [name for name in named(run) if name.startswith("events.out.tfevents")]
    assert len(events) == 2  # one of each process
    wanted = {name for name in named(unbroken) if not name.startswith("events.")}
    assert {*named(run)} - {*events} >= wanted
    for name in ("config.json", "samples/00000060.png"):
        assert (run / name).read_bytes() == (unbroken / name).read_bytes()
    assert "Samples over training" in (run / "report.html").read_text()


@pytest.mark.slow
def test_samples_and_measurements_are_those_of_a_folder(run, unbroken, tmp_path):
    found, wanted = (vitdiff_jax.load(str(home)).sample(n=4, seed=5) for home in (run, unbroken))
    np.testing.assert_array_equal(found, wanted)
    reports, folder = [], shutil.copytree(unbroken, tmp_path / "run")
    for home in (run, folder):
        assert tiny.call(f"--workdir={home}", "--mode=sample", "--n=4") == 0
        sweep = "--config.evaluate.sweep.steps=(2,3)"
        assert tiny.call(f"--workdir={home}", "--mode=evaluate", sweep) == 0
        reports.append(json.loads((home / "evaluation.json").read_text()))
        assert (home / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    name = "samples/step60-seed0-n4.png"
    assert (run / name).read_bytes() == (folder / name).read_bytes()
    for one, other in zip(*(report["rows"] for report in reports), strict=True):
        assert one["results"] == other["results"]


@pytest.mark.slow
def test_pictures_of_a_bucket_are_restored_into_it(bucket, run):
    whole = np.random.default_rng(0).integers(0, 255, (8, 8, 1), np.uint8)
    missing = np.zeros((8, 8, 1), np.uint8)
    missing[2:5, 2:5] = 255
    photos = epath.Path(f"{bucket}/photos")
    image_lib.save_png(photos / "a.png", whole)
    image_lib.save_png(photos / "below" / "b.png", whole)
    image_lib.save_png(epath.Path(f"{bucket}/mask.png"), missing)
    flags = "--task=inpaint", "--method=ddnm", "--noise=0", f"--mask={bucket}/mask.png"
    code = tiny.call(f"--workdir={run}", "--mode=restore", f"--input={photos}", *flags)
    assert code == 0
    for name in ("a.png", "below/b.png"):
        with (run / "restored" / name).open("rb") as file:
            kept = np.asarray(Image.open(file))[..., None][missing == 0]
        np.testing.assert_allclose(kept.astype(int), whole[missing == 0].astype(int), atol=1)
    rows = json.loads((run / "restoration.json").read_text())["rows"]
    inputs = [row["input"].partition("bucket/")[2] for row in rows]
    assert inputs == ["photos/a.png", "photos/below/b.png"]


@pytest.mark.slow
def test_training_starts_from_and_exports_to_a_bucket(bucket, run, tmp_path, config):
    start = f"--config.train.init_from={run}", "--config.train.steps=2"
    assert tiny.call(config, f"--workdir={tmp_path}", *start, "--config.log.sample_every=0") == 0
    assert tiny.call(f"--workdir={run}", "--mode=export") == 0
    source, again = run / "export" / "ema-0.99-step60.safetensors", f"{bucket}/runs/again"
    assert tiny.call("--mode=import", f"--source={source}", f"--workdir={again}") == 0
    found, wanted = (vitdiff_jax.load(home).sample(n=2, seed=1) for home in (again, run))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.slow
def test_damage_is_noticed_and_set_aside(bucket):
    home = paths.resolve(f"{bucket}/damaged")
    test_checkpoint.save(home, 10, 20)
    meta = home / "20" / "meta" / "metadata"
    meta.write_bytes(meta.read_bytes().replace(b"step", b"stop"))
    said = []
    checkpoints = Checkpoints(home, keep=9, report=said.append)
    assert checkpoints.newest(set_aside=True) == 10
    (line,) = said
    assert line.startswith("checkpoint 20 is damaged (checksum mismatch in 1 of ")
    assert named(home) == ["10", "20.damaged"]
    checkpoints.close()


@pytest.fixture
def cut_off(bucket):
    home = paths.resolve(f"{bucket}/cut")
    test_checkpoint.save(home, 10, 20)
    (home / "20" / LAST[bucket]).unlink()
    return home


@pytest.mark.slow
def test_a_checkpoint_without_its_last_file_is_none(bucket, cut_off):
    """It is cleared away, or written again."""
    home, later, said = cut_off, 30 if bucket.startswith("s3") else 20, []
    checkpoints = Checkpoints(home, keep=9, report=said.append)
    assert checkpoints.newest(set_aside=True) == 10
    assert said == []
    checkpoints.close()
    test_checkpoint.save(home, later)
    assert named(home) == ["10", f"{later}"]
    checkpoints = Checkpoints(home, keep=9, read_only=True)
    assert checkpoints.undamaged() == [10, later]
    test_checkpoint.assert_holds(checkpoints, later)


def test_files_that_a_config_names_may_lie_there(s3, tmp_path):
    """The mask and the kernel of a damage; weights are looked for there."""
    missing = np.zeros((8, 8, 1), np.uint8)
    missing[2:5, 2:5] = 255
    image_lib.save_png(epath.Path("s3://bucket/mask.png"), missing)
    found = mask.make((8, 8, 1), np.random.default_rng(0), kind="file", path=f"{s3}/mask.png")
    np.testing.assert_array_equal(found.known[..., 0] == 0, missing[..., 0] == 255)
    kernel = np.full((3, 3), 1 / 9)
    with epath.Path("s3://bucket/kernel.npy").open("wb") as file:
        np.save(file, kernel)
    found = blur.make((8, 8, 1), np.random.default_rng(0), kind="file", path=f"{s3}/kernel.npy")
    image = np.random.default_rng(1).random((1, 8, 8, 1), np.float32)
    blurred = found.forward(image)[0, 4, 4, 0]
    np.testing.assert_allclose(blurred, image[0, 3:6, 3:6, 0].mean(), rtol=1e-5)
    with pytest.raises(OSError, match=r"s3://bucket/none\.pt: there is no such object"):
        codec.load("s3://bucket/none.pt", 8)
    with pytest.raises(OSError, match=r"s3://bucket/none\.pt: there is no such object"):
        weights.read(networks.PUBLISHED, "s3://bucket/none.pt")


@pytest.mark.slow
def test_a_bucket_keeps_what_a_folder_does(s3, tmp_path):
    for home in (epath.Path(tmp_path / "here"), paths.resolve(f"{s3}/keep")):
        for steps in ([10, 20, 30], [40, 50]):  # two runs
            test_checkpoint.save(home, *steps, keep=1, keep_every=20)
        assert named(home) == ["20", "40", "50"]


def test_what_goes_wrong_there_is_one_line(s3, capsys, tmp_path, monkeypatch):
    digits = tiny.write(tmp_path / "digits.py")
    assert tiny.call(digits, "--workdir=s3://nobody/run") == 1
    assert capsys.readouterr().err == "error: s3://nobody/run: there is no bucket nobody\n"
    monkeypatch.setattr(checkpoint.jax, "process_count", lambda: 2)
    with pytest.raises(CheckpointError, match="several processes can save checkpoints only in a"):
        Checkpoints(epath.Path("s3://bucket/several"))


def test_a_bucket_that_is_gone_while_training_is_one_line(s3, monkeypatch):
    def gone(*_):
        raise OSError("the bucket is gone")

    monkeypatch.setattr(bucket_lib.paths, "upload", gone)
    home = paths.resolve(f"{s3}/gone")
    with pytest.raises(CheckpointError, match=r"cannot write to s3://bucket/gone: .*is gone"):
        test_checkpoint.save(home, 10)


def test_what_cannot_be_fetched_now_is_not_damaged_by_that(s3, monkeypatch):
    home = paths.resolve(f"{s3}/fetch")
    test_checkpoint.save(home, 10, 20)

    def gone(*_):
        raise OSError("the network is gone")

    monkeypatch.setattr(bucket_lib.paths, "download", gone)
    checkpoints = Checkpoints(home, keep=9)
    with pytest.raises(CheckpointError, match=r"checkpoint 20 in s3://.*: the network is gone"):
        checkpoints.newest(set_aside=True)
    assert named(home) == ["10", "20"]
