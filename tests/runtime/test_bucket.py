"""Runs in a bucket of a server on this machine that speaks the protocol of Amazon's S3."""

import json

import boto3
import numpy as np
import pytest
from etils import epath
from moto.server import ThreadedMotoServer

import vitdiff_jax
from tests import tiny
from tests.runtime import test_checkpoint
from tests.runtime.buckets import (  # noqa: F401 - fixtures
    CHANGES,
    config_file,
    killed_and_resumed,
    named,
    refused,
    unbroken_run,
)
from vitdiff_jax.evaluation import networks
from vitdiff_jax.experiment import codec
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.interop import weights
from vitdiff_jax.operators import blur, mask
from vitdiff_jax.runtime import bucket, checkpoint, paths
from vitdiff_jax.runtime.checkpoint import SUMS, CheckpointError, Checkpoints


@pytest.fixture(scope="module")
def server():
    """Its bucket "bucket"; fsspec and what else asks for S3 find it by their variables."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in dict(
            AWS_ACCESS_KEY_ID="any", AWS_SECRET_ACCESS_KEY="any", AWS_DEFAULT_REGION="us-east-1",
            AWS_ENDPOINT_URL=f"http://{host}:{port}",
        ).items():  # fmt: skip
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="bucket")
        paths.resolve("s3://bucket")  # before all else: fsspec would keep lists of what is there
        yield server
    server.stop()


@pytest.fixture(scope="module")
def run(server, config):
    """A run in the bucket that was killed after step 10, and then went on."""
    return killed_and_resumed("s3://bucket/runs/killed", config, SUMS)


@pytest.mark.slow
def test_a_killed_run_goes_on_bitwise(run, unbroken):
    settings = tiny.config(**CHANGES)
    tiny.assert_same(tiny.saved(settings, run), tiny.saved(settings, unbroken))
    assert tiny.logged(run) == tiny.logged(unbroken) == list(range(1, 61))
    assert named(run / "checkpoints") == ["40", "50", "60"]
    assert (run / "samples/00000060.png").read_bytes() == (
        unbroken / "samples/00000060.png"
    ).read_bytes()
    assert "Samples over training" in (run / "report.html").read_text()


@pytest.mark.slow
def test_what_a_run_is_for_works_there(run, unbroken):
    """Python, samples, measurements, restoration, export, import, training from there."""
    found, wanted = (vitdiff_jax.load(str(home)).sample(n=4, seed=5) for home in (run, unbroken))
    np.testing.assert_array_equal(found, wanted)
    photo = epath.Path("s3://bucket/photos/a.png")
    image_lib.save_png(photo, np.random.default_rng(0).integers(0, 255, (8, 8, 1), np.uint8))
    restore = f"--input={photo}", "--task=denoise", "--method=ddnm"
    modes = ("sample", "--n=4"), ("evaluate",), ("restore", *restore), ("export",)
    for mode, *flags in modes:
        assert tiny.call(f"--workdir={run}", f"--mode={mode}", *flags) == 0
    assert (run / "samples/step60-seed0-n4.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "evaluation.json").read_text())["rows"]
    assert (run / "restored/a.png").exists()
    source, again = run / "export/ema-0.99-step60.safetensors", "s3://bucket/runs/again"
    assert tiny.call("--mode=import", f"--source={source}", f"--workdir={again}") == 0
    np.testing.assert_array_equal(vitdiff_jax.load(again).sample(n=4, seed=5), wanted)


def test_files_that_a_config_names_may_lie_there(server, tmp_path):
    """The mask and the kernel of a damage; weights are looked for there."""
    bucket, missing = "s3://bucket", np.zeros((8, 8, 1), np.uint8)
    missing[2:5, 2:5] = 255
    image_lib.save_png(epath.Path("s3://bucket/mask.png"), missing)
    found = mask.make((8, 8, 1), np.random.default_rng(0), kind="file", path=f"{bucket}/mask.png")
    np.testing.assert_array_equal(found.known[..., 0] == 0, missing[..., 0] == 255)
    kernel = np.full((3, 3), 1 / 9)
    with epath.Path("s3://bucket/kernel.npy").open("wb") as file:
        np.save(file, kernel)
    found = blur.make((8, 8, 1), np.random.default_rng(0), kind="file", path=f"{bucket}/kernel.npy")
    image = np.random.default_rng(1).random((1, 8, 8, 1), np.float32)
    blurred = found.forward(image)[0, 4, 4, 0]
    np.testing.assert_allclose(blurred, image[0, 3:6, 3:6, 0].mean(), rtol=1e-5)
    with pytest.raises(OSError, match=r"s3://bucket/none\.pt: there is no such object"):
        codec.load("s3://bucket/none.pt", 8)
    with pytest.raises(OSError, match=r"s3://bucket/none\.pt: there is no such object"):
        weights.read(networks.PUBLISHED, "s3://bucket/none.pt")


@pytest.mark.slow
def test_training_starts_from_there(run, config, tmp_path):
    start = f"--config.train.init_from={run}", "--config.train.steps=2"
    assert tiny.call(config, f"--workdir={tmp_path}", *start, "--config.log.sample_every=0") == 0


def test_a_checkpoint_without_its_last_file_is_none(server):
    home = paths.resolve("s3://bucket/cut")
    test_checkpoint.save(home, 10, 20)
    (home / "20" / SUMS).unlink()
    checkpoints = Checkpoints(home, keep=9)
    assert checkpoints.newest(set_aside=True) == 10
    checkpoints.close()
    test_checkpoint.save(home, 30)  # which clears away what was cut off
    assert named(home) == ["10", "30"]
    checkpoints = Checkpoints(home, keep=9, read_only=True)
    assert checkpoints.undamaged() == [10, 30]
    test_checkpoint.assert_holds(checkpoints, 30)


@pytest.mark.slow
def test_damage_is_noticed_and_set_aside(server):
    home = paths.resolve("s3://bucket/damaged")
    test_checkpoint.save(home, 10, 20)
    meta = home / "20" / "meta" / "metadata"
    meta.write_bytes(meta.read_bytes().replace(b"step", b"stop"))
    said = []
    checkpoints = Checkpoints(home, keep=9, report=said.append)
    assert checkpoints.newest(set_aside=True) == 10
    assert [line.partition(" (")[0] for line in said] == ["checkpoint 20 is damaged"]
    assert named(home) == ["10", "20.damaged"]
    checkpoints.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keep", "every", "wanted"),
    [(1, 20, ["20", "40", "50"]), pytest.param(2, 0, ["40", "50"], marks=pytest.mark.slow)],
)
def test_a_bucket_keeps_what_a_folder_does(server, tmp_path, keep, every, wanted):
    for home in (epath.Path(tmp_path / "here"), paths.resolve(f"s3://bucket/keep{keep}{every}")):
        for steps in ([10, 20, 30], [40, 50]):  # two runs
            test_checkpoint.save(home, *steps, keep=keep, keep_every=every)
        assert named(home) == wanted


def test_what_goes_wrong_there_is_one_line(server, capsys, tmp_path, monkeypatch):
    digits = tiny.write(tmp_path / "digits.py")
    assert refused(capsys, digits, "--workdir=s3://nobody/run") == (
        1, "error: s3://nobody/run: there is no bucket nobody",
    )  # fmt: skip
    monkeypatch.setattr(checkpoint.jax, "process_count", lambda: 2)
    with pytest.raises(CheckpointError, match="several processes can save checkpoints only in a"):
        Checkpoints(epath.Path("s3://bucket/several"))


def test_a_bucket_that_is_gone_while_training_is_one_line(server, monkeypatch):
    def gone(*_):
        raise OSError("the bucket is gone")

    monkeypatch.setattr(bucket.paths, "upload", gone)
    home = paths.resolve("s3://bucket/gone")
    with pytest.raises(CheckpointError, match=r"cannot write to s3://bucket/gone: .*is gone"):
        test_checkpoint.save(home, 10)


def test_what_cannot_be_fetched_now_is_not_damaged_by_that(server, monkeypatch):
    home = paths.resolve("s3://bucket/fetch")
    test_checkpoint.save(home, 10, 20)

    def gone(*_):
        raise OSError("the network is gone")

    monkeypatch.setattr(bucket.paths, "download", gone)
    checkpoints = Checkpoints(home, keep=9)
    with pytest.raises(CheckpointError, match=r"checkpoint 20 in s3://.*: the network is gone"):
        checkpoints.newest(set_aside=True)
    assert named(home) == ["10", "20"]
