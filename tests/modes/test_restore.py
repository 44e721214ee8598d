"""`--mode=restore` and `model.restore`: pictures of all kinds, comparisons, bad input."""

import errno
import json
import shutil

import numpy as np
import pytest
from etils import epath
from PIL import Image

import vitdiff_jax
from tests import tiny
from tests.test_main import fails
from vitdiff_jax.data import digits
from vitdiff_jax.evaluation.psnr import psnr
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import benchmark, restoring
from vitdiff_jax.interop.images import to_uint8

RANDOM, BOX = np.random.default_rng(0), "mask:kind=box,side=0.5"
pytestmark = pytest.mark.usefixtures("plain")


@pytest.fixture(scope="module")
def model(untrained, plain):
    return vitdiff_jax.load(untrained)


def call(workdir, *flags):
    """What stands in restoration.json."""
    assert tiny.call(f"--workdir={workdir}", "--mode=restore", *flags) == 0
    return json.loads((workdir / "restoration.json").read_text())


def picture(path, *shape, dtype=np.uint8):
    """A random picture in a file; returns its pixels."""
    pixels = RANDOM.integers(0, np.iinfo(dtype).max, shape, dtype)
    Image.fromarray(pixels).save(path)
    return pixels


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_hole_is_filled_and_nothing_else_is_touched(workdir, tmp_path):
    """A picture larger than the model's, no multiple of anything; the original stays."""
    photo = picture(tmp_path / "photo.png", 19, 13)
    missing = np.zeros((19, 13), np.uint8)
    missing[5:9, 3:8] = 255
    Image.fromarray(missing).save(tmp_path / "mask.png")
    before = tiny.files(tmp_path)
    report = call(
        workdir, f"--input={tmp_path / 'photo.png'}", "--task=inpaint", "--noise=0",
        f"--mask={tmp_path / 'mask.png'}", "--n=2", "--label=3",
    )  # fmt: skip
    home = workdir / "restored"
    assert sorted(path.name for path in home.iterdir()) == [
        "photo-1.png", "photo-2.png", "photo-beside.png", "photo-uncertainty.png", "photo.png",
    ]  # fmt: skip
    one, two, mean = (pixels(home / f"photo{name}.png") for name in ("-1", "-2", ""))
    for image in (one, two, mean):
        np.testing.assert_array_equal(image[missing == 0], photo[missing == 0])
    assert (one != two)[missing > 0].any()
    assert abs((one.astype(float) + two) / 2 - mean).max() <= 1
    uncertain = pixels(home / "photo-uncertainty.png")
    assert (uncertain[missing == 0] == 0).all()
    assert uncertain[missing > 0].any()
    after = tiny.files(tmp_path)
    assert all(after[name] == before[name] for name in before if not name.startswith("run"))
    (row,) = report["rows"]
    assert (row["task"], row["method"]) == ("inpaint", "flower")
    assert row["tiles"] > 1


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [pytest.param((12, 9), np.uint16, marks=pytest.mark.slow), ((12, 9, 4), np.uint8)],
    ids=["grey16", "rgba"],
)
def test_a_picture_comes_back_in_its_kind(workdir, tmp_path, shape, dtype):
    """By a model of grey images of 8 px."""
    given = picture(tmp_path / "photo.png", *shape, dtype=dtype)
    call(workdir, f"--input={tmp_path / 'photo.png'}", "--task=denoise", "--method=ddrm")
    found = pixels(workdir / "restored" / "photo.png")
    assert (found.shape, found.dtype) == (given.shape, given.dtype)
    if len(shape) == 3 and shape[2] == 4:
        np.testing.assert_array_equal(found[..., 3], given[..., 3])
    assert len({pixel.tobytes() for pixel in found.reshape(-1, *found.shape[2:])}) > 3


def test_a_folder_keeps_its_names_apart(workdir, tmp_path):
    photos = tmp_path / "photos"
    (photos / "trip").mkdir(parents=True)
    for name in ("a.png", "a.bmp", "b.png", "trip/b.png"):
        picture(photos / name, 8, 8)
    report = call(workdir, f"--input={photos}", "--task=upscale:factor=2", "--method=ddnm")
    assert len(report["rows"]) == 4
    home = workdir / "restored"
    for name in ("a.png.png", "a.bmp.png", "b.png", "trip/b.png"):
        assert pixels(home / name).shape == (16, 16)


@pytest.mark.slow
def test_degrading_first_knows_the_truth(workdir, tmp_path):
    """A sinogram is no picture; what is seen of it and the truth stand beside the result."""
    picture(tmp_path / "phantom.png", 16, 16)
    report = call(
        workdir, f"--input={tmp_path / 'phantom.png'}", "--task=radon:angles=8", "--degrade",
        "--noise=0.01", "--method=diffpir",
    )  # fmt: skip
    assert report["rows"][0]["noise_std"] == 0.01
    sheet = pixels(workdir / "restored" / "phantom-beside.png")
    assert sheet.shape[1] > 2.8 * sheet.shape[0]  # three pictures in a row


def test_editing_keeps_what_it_must(model):
    """SDEdit under a mask, of a class; the level decides how many steps there are."""
    image = digits.dataset().heldout.images[0]
    changed = np.zeros((8, 8), bool)
    changed[:, 4:] = True
    found = model.restore(image, "edit", mask=changed, strength=0.9, label=4, n=2)
    assert found.images.shape == (2, 8, 8, 1)
    np.testing.assert_array_equal(found.images[:, :, :4], np.stack([image[:, :4]] * 2))
    assert (found.images[0] != found.images[1]).any()
    few = model.restore(image, "edit", strength=0.05)
    # Of three steps those below the level, and one from it.
    assert [result.about["network_calls"] for result in (few, found)] == [1, 3]


def test_a_sample_depends_on_its_own_seed_alone(model):
    """Not on how many there are, nor on the picture's other colours."""
    image = RANDOM.integers(0, 256, (8, 8, 1), np.uint8)
    options = dict(task="mask:kind=random,share=0.5", method="ddnm", degrade=True, noise_std=0.0)
    three = model.restore(image, n=3, seed=0, **options)
    one = model.restore(image, n=1, seed=0, **options)
    np.testing.assert_allclose(three.samples[:1], one.samples, atol=1e-5)
    assert abs(three.samples[0] - three.samples[1]).max() > 0.01


def test_from_python_as_from_the_command(model, workdir, tmp_path):
    given = picture(tmp_path / "photo.png", 8, 8)
    flags = ("--task=deblur:size=3", "--method=ddrm", "--noise=0.1", "--seed=4")
    call(workdir, f"--input={tmp_path / 'photo.png'}", *flags)
    found = model.restore(given, "deblur:size=3", method="ddrm", noise_std=0.1, seed=4)
    written = pixels(workdir / "restored" / "photo.png").astype(int)
    assert abs(found.images[0, ..., 0].astype(int) - written).max() <= 1


@pytest.mark.slow
def test_four_devices_give_the_same(tmp_path):
    """Three samples, cut over devices that they do not divide by."""
    workdir = tiny.save(tmp_path / "vit", tiny.config(restore=dict(steps=3)))
    picture(tmp_path / "photo.png", 11, 8)
    flags = [
        f"--workdir={workdir}", "--mode=restore", f"--input={tmp_path / 'photo.png'}",
        "--task=mask:kind=random,share=0.5", "--degrade", "--method=pigdm", "--n=3",
    ]  # fmt: skip
    assert tiny.call(*flags) == 0
    home = workdir / "restored"
    wanted = [pixels(home / f"photo-{i}.png").astype(int) for i in (1, 2, 3)]
    shutil.rmtree(home)
    code, _, error = tiny.command(*flags, devices=4)
    assert code == 0, error
    for i in (1, 2, 3):
        assert abs(pixels(home / f"photo-{i}.png") - wanted[i - 1]).max() <= 1


@pytest.mark.slow
def test_pictures_alike_are_compiled_once(model, monkeypatch):
    """Another picture with another mask is another argument; another size another program."""
    made, plain = [], restoring.program
    monkeypatch.setattr(restoring, "program", lambda *a: made.append(a) or plain(*a))
    for seed, height in ((0, 8), (1, 8), (2, 9)):
        image = RANDOM.integers(0, 256, (height, 8), np.uint8)
        task = "mask:kind=random,share=0.5"
        model.restore(image, task, method="ddrm", degrade=True, seed=seed)
    assert len(made) == 2


@pytest.fixture(scope="module")
def compared(untrained, plain, tmp_path_factory):
    workdir = shutil.copytree(untrained, tmp_path_factory.mktemp("compared") / "run")
    flags = [f"--config.restore.tasks=('{BOX}',)", "--config.restore.metrics=('psnr',)"]
    return workdir, call(workdir, *flags)


def test_every_method_that_serves_has_a_row(compared):
    """Degraded images come first; there is a picture of all."""
    workdir, report = compared
    found = [(row["task"], row["method"]) for row in report["rows"]]
    assert found == [(BOX, "degraded"), (BOX, "ddrm"), (BOX, "repaint:jump=1,resample=2")]
    assert [row.get("network_calls") for row in report["rows"]] == [None, 3, 6]
    costs = [(row["seconds"], row["memory"]) for row in report["rows"] if "steps" in row]
    assert all(seconds >= 0 and memory > 0 for seconds, memory in costs)  # 0: below 0.5 ms
    (picture,) = (workdir / "restored").iterdir()
    assert picture.name == "mask_kind_box_side_0.5.png"


def test_a_method_that_does_not_serve_is_left_out(workdir):
    """RePaint needs a mask. Of grey images nothing is lost by the mean over their one channel."""
    methods = "--config.restore.methods=('repaint:jump=1,resample=2',)"
    flags = ["--config.restore.tasks=('colourise',)", "--config.restore.metrics=('psnr',)"]
    (row,) = call(workdir, methods, *flags)["rows"]
    assert (row["task"], row["method"]) == ("colourise", "degraded")
    assert row["results"]["psnr/uint8"]["value"] is None  # infinite
    assert (workdir / "restored" / "colourise.png").exists()


def test_the_numbers_are_those_of_the_images(compared):
    _, report = compared
    images = digits.dataset().heldout.images[:6]
    model = vitdiff_jax.load(compared[0])
    config = model.experiment.config.restore  # the same operators and noise as the command
    parts = list(benchmark.degraded(BOX, config, digits.dataset()))
    assert [len(x) for x, _, _ in parts] == [4, 2]
    assert not np.array_equal(parts[0][1].operator.known, parts[1][1].operator.known)
    shown = np.concatenate([np.asarray(to_uint8(image)) for _, _, image in parts])
    wanted = psnr(shown, images)
    found = report["rows"][0]["results"]["psnr/uint8"]
    assert found["value"] == pytest.approx(wanted.mean())
    assert found["standard_error"] == pytest.approx(wanted.std(ddof=1) / np.sqrt(6))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--input: required, or config.restore.tasks"),
        (["--n=0"], "--n: 0 is less than 1"),
        (["--config.restore.tasks=('denoise',)", "--noise=0.1", "--label=3"],
         "--noise, --label: of an --input, which is missing"),
        (["--task=denoise", "--strength=0.8"], "--strength: of --task=edit alone"),
        (["--input={home}/photo.png", "--task=edit", "--noise=0.1", "--degrade"],
         "noise_std, degrade: not used by the task edit"),
        (["--input={home}/photo.png", "--noise=25"], "--noise: 25 is more than the range"),
        (["--config.restore.tasks=('denoise',)", "--config.restore.noise_std=-1.0"],
         "config.restore.noise_std: -1.0 is not"),
        (["--input={home}/none.png"], "{home}/none.png: no such image or folder"),
        (["--input={home}/text.jpg"], "{home}/text.jpg: cannot identify image"),
        (["--input={home}/photo.png", "--task=inpaint"], "mask: required for the task inpaint"),
        (
            ["--input={home}/photo.png", "--mask={home}/small.png"],
            "mask: the mask has 4x4 pixels, the degraded image 8x8",
        ),
        (["--input={home}/photo.png", "--mask={home}/text.jpg"], "mask: {home}/text.jpg: not a"),
        (["--input={home}/photo.png", "--task=sharpen"], "task: name: there is no operator"),
        (["--input={home}/photo.png", "--method=best"], "method: there is no method 'best', only"),
        (["--input={home}/photo.png", "--method=dps:step=1"], "method: dps has no option 'step'"),
        (["--input={home}/photo.png", "--method=dps:scale=much"], "method: dps: scale: 'much' is"),
        (["--input={home}/photo.png", "--method=repaint"], "method: repaint needs a mask"),
        (["--input={home}/photo.png", "--method=palette"], "method: palette needs a model"),
        (["--input={home}/photo.png", "--task=edit", "--strength=2"], "--strength: 2.0 is not"),
        (["--input={home}/photo.png", "--config.restore.overlap=1.5"], "config.restore.overlap"),
        (["--config.restore.tasks=('denoise',)", "--config.restore.methods=('my.own',)"],
         "method: cannot use 'my.own': No module named"),
        (["--config.restore.tasks=('denoise',)", "--config.restore.metrics=('ssim',)"],
         "config.restore.metrics: ssim: images of 8x8 are smaller"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_changes_nothing(workdir, tmp_path, capsys, flags, message):
    picture(tmp_path / "photo.png", 8, 8)
    picture(tmp_path / "small.png", 4, 4)
    (tmp_path / "text.jpg").write_text("no picture")
    before = tiny.files(tmp_path)
    flags = [flag.format(home=tmp_path) for flag in flags]
    _, found = fails(capsys, f"--workdir={workdir}", "--mode=restore", *flags)
    assert found.startswith(message.format(home=tmp_path))
    assert tiny.files(tmp_path) == before


def test_results_are_not_their_own_input(workdir, tmp_path, capsys):
    """The picture would be written over."""
    (workdir / "restored").mkdir()
    picture(workdir / "restored" / "photo.png", 8, 8)
    before = tiny.files(tmp_path)
    flags = [f"--workdir={workdir}", "--mode=restore", f"--input={workdir / 'restored'}"]
    _, found = fails(capsys, *flags)
    assert "is in the output folder" in found
    assert tiny.files(tmp_path) == before


def test_a_full_disk_is_one_line_and_no_file_is_half_there(workdir, tmp_path, capsys, monkeypatch):
    """Of many that are written at once; the others are whole."""
    picture(tmp_path / "photo.png", 8, 8)
    kind = type(epath.Path(workdir))
    write = kind.replace

    def replace(partial, path):
        if path.name == "photo-2.png":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(partial, path)

    monkeypatch.setattr(kind, "replace", replace)
    flags = [f"--workdir={workdir}", "--mode=restore", f"--input={tmp_path / 'photo.png'}"]
    code, found = fails(capsys, *flags, "--task=denoise", "--n=4")
    home = workdir / "restored"
    assert (code, found) == (1, f"{home / 'photo-2.png'}: No space left on device")
    for path in home.glob("*.png"):
        pixels(path)
    assert len(list(home.glob("*.png"))) == 6
    assert not (workdir / "restoration.json").exists()


def test_bad_images_from_python(model):
    for image in (np.zeros((8, 8, 2)), np.full((8, 8), np.nan), np.full((8, 8), 3.0)):
        with pytest.raises(ConfigError, match=r"^image: "):
            model.restore(image)
