"""`--mode=restore` on files of all kinds: restored in their kind, or one line and no change."""

import json
import os

import numpy as np
import pytest
from PIL import Image, ImageDraw

import vitdiff_jax
from tests import tiny
from tests.test_main import fails
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.operators import scratches

pytestmark = pytest.mark.usefixtures("plain")
RANDOM = np.random.default_rng(0)
DENOISE = ["--task=denoise", "--method=ddrm", "--noise=0.1"]


def random(*shape, dtype=np.uint8):
    return RANDOM.integers(0, np.iinfo(dtype).max, shape, dtype)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


slow = pytest.mark.slow


@pytest.fixture(scope="module")
def model(untrained, plain):
    return vitdiff_jax.load(untrained)


@pytest.mark.parametrize(
    ("name", "made", "shape", "dtype"),
    [
        ("photo.png", lambda: Image.fromarray(random(3, 5)), (3, 5), np.uint8),
        pytest.param(
            "photo.png", lambda: Image.fromarray(random(3, 400)), (3, 400), np.uint8, marks=slow
        ),
        ("photo.jpg", lambda: Image.fromarray(random(8, 5, 4), "CMYK"), (8, 5, 3), np.uint8),
        ("photo.tif", lambda: Image.fromarray(random(8, 5, 4), "CMYK"), (8, 5, 3), np.uint8),
        pytest.param(
            "photo.png",
            lambda: Image.fromarray(random(8, 5, dtype=np.uint16)),
            (8, 5),
            np.uint16,
            marks=slow,
        ),
        pytest.param(
            "photo.png", lambda: Image.fromarray(random(8, 5, 4)), (8, 5, 4), np.uint8, marks=slow
        ),
        pytest.param(
            "photo.gif", lambda: Image.fromarray(random(8, 5)), (8, 5, 3), np.uint8, marks=slow
        ),
    ],
    ids=["3x5", "strip", "CMYK JPEG", "CMYK TIFF", "16 bits", "alpha", "GIF"],
)
def test_a_file_comes_back_in_its_kind(workdir, tmp_path, name, made, shape, dtype):
    """Smaller than the model's images, long and thin, of inks, of many bits, transparent."""
    (image := made()).save(tmp_path / name)
    given = (tmp_path / name).read_bytes()
    flags = [f"--workdir={workdir}", "--mode=restore", f"--input={tmp_path / name}"]
    assert tiny.call(*flags, *DENOISE) == 0
    found = pixels(workdir / "restored" / "photo.png")
    assert (found.shape, found.dtype) == (shape, dtype)
    if image.mode == "RGBA":
        np.testing.assert_array_equal(found[..., 3], np.asarray(image)[..., 3])
    assert (tmp_path / name).read_bytes() == given


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--input=photo.png", "--mask=small.png"], 2,
         "mask: the mask has 4x3 pixels, the degraded image 8x12"),
        (["--input=photo.png", "--mask=turned.png"], 2,
         "mask: the mask has 12x8 pixels, the degraded image 8x12; one of them is turned"),
        (["--input=photo.png", "--task=inpaint"], 2, "mask: required for the task inpaint"),
        (["--input=photo.png", "--mask=folder"], 2, "mask: {home}/folder: not a readable image"),
        (["--input=photo.png", "--mask=none.png"], 2, "mask: {home}/none.png: not a readable"),
        (["--input=photo.png", "--mask=document.jpg"], 2, "mask: {home}/document.jpg: not a"),
        (["--input=photo.png", "--mask=AUTO"], 2, "mask: {home}/AUTO: not a readable image: No"),
        (["--input=document.jpg"], 1, "{home}/document.jpg: cannot identify image"),
        (["--input=empty.png"], 1, "{home}/empty.png: "),
        (["--input=folder"], 1, "{home}/folder: contains no images"),
        (["--input=none"], 1, "{home}/none: no such image or folder of images"),
    ],
)  # fmt: skip
def test_bad_files_are_one_line_and_change_nothing(workdir, tmp_path, capsys, flags, code, message):
    Image.fromarray(random(12, 8)).save(tmp_path / "photo.png")
    for name, size in (("small", (3, 4)), ("turned", (8, 12))):
        Image.fromarray(np.eye(*size, dtype=bool)).save(tmp_path / f"{name}.png")
    (tmp_path / "document.jpg").write_bytes(b"%PDF-1.4\n1 0 obj <<>> endobj\n")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder").mkdir()
    before = tiny.files(tmp_path)
    flags = [flag.replace("=", f"={tmp_path}/") if "task" not in flag else flag for flag in flags]
    found = fails(capsys, f"--workdir={workdir}", "--mode=restore", *flags)
    assert found[0] == code
    assert found[1].startswith(message.format(home=tmp_path))
    assert tiny.files(tmp_path) == before


def test_a_folder_that_takes_no_results_is_named_before_the_work(
    workdir, tmp_path, capsys, monkeypatch, untrained
):
    Image.fromarray(random(8, 8)).save(tmp_path / "photo.png")
    flags = [f"--workdir={workdir}", "--mode=restore", f"--input={tmp_path / 'photo.png'}"]
    monkeypatch.setattr("vitdiff_jax.inference.model.TrainedModel.restore", None)  # is not reached
    (workdir / "restored").write_text("a file")
    home = workdir / "restored"
    wanted = f"{home}: is a file, not a folder for results"
    assert fails(capsys, *flags, *DENOISE) == (1, wanted)
    assert home.read_text() == "a file"
    home.unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    assert fails(capsys, *flags, *DENOISE) == (1, f"{workdir}: is read-only; results go there")
    assert not home.exists()


def scratched(size=64):
    """A grey gradient with two white lines: uint8 [H, W]."""
    x = np.repeat(np.linspace(60, 150, size).astype(np.uint8)[None], size, 0)
    picture = Image.fromarray(x)
    pen = ImageDraw.Draw(picture)
    pen.line([(5, 10), (50, 30)], fill=255, width=2)
    pen.line([(20, 60), (30, 30)], fill=255, width=2)
    return np.asarray(picture)


@slow
def test_scratches_that_are_found_are_a_mask_to_edit(workdir, tmp_path, capsys):
    """Named in the line of the picture; passed back, it is the mask that was used."""
    Image.fromarray(scratched()).save(tmp_path / "photo.png")
    flags = [f"--workdir={workdir}", "--mode=restore", f"--input={tmp_path / 'photo.png'}"]
    assert tiny.call(*flags, "--mask=auto", "--noise=0", "--label=1") == 0
    home = workdir / "restored"
    mask = pixels(home / "photo-mask.png")
    wanted = scratches.find(scratched()[..., None] / 127.5 - 1)
    assert wanted.any()
    np.testing.assert_array_equal(mask, wanted * 255)
    assert f"scratches on {wanted.mean():.2%} of it in photo-mask.png" in capsys.readouterr().out
    (row,) = json.loads((workdir / "restoration.json").read_text())["rows"]
    assert row["mask"] == pytest.approx(wanted.mean())
    found = pixels(home / "photo.png")
    np.testing.assert_array_equal(found[~wanted], scratched()[~wanted])
    mine = tmp_path / "mine.png"
    mine.write_bytes((home / "photo-mask.png").read_bytes())
    assert tiny.call(*flags, f"--mask={mine}", "--noise=0", "--label=1") == 0
    (other,) = workdir.glob("restored-*/photo.png")
    np.testing.assert_array_equal(pixels(other), found)
    assert not other.with_name("photo-mask.png").exists()


def test_where_there_are_no_scratches(model, capsys):
    """What needs them says so, and what does not goes on without."""
    sky = np.repeat(np.linspace(-0.5, 0.5, 40, dtype=np.float32)[None], 40, 0)
    for task in ("inpaint", None, "edit"):
        with pytest.raises(ConfigError, match=r"^mask: auto finds no scratches"):
            model.restore(sky, task, mask="auto")
    found = model.restore(sky, "old-photo", mask="auto", method="ddrm", noise_std=0.1)
    assert found.mask is None
    assert "mask: auto finds no scratches; restored without a mask\n" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"^mask: auto finds .* not in a clean one"):
        model.restore(sky, "denoise", mask="auto", degrade=True)


def test_a_file_named_auto_is_not_guessed_at(workdir, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "auto").touch()
    flags = [f"--workdir={workdir}", "--mode=restore", "--input=photo.png", "--mask=auto"]
    assert fails(capsys, *flags) == (
        2,
        "--mask: auto means scratches, and is a file here; rename it",
    )
