"""`--mode=evaluate --truth`: pairs are files of one name, in whatever order they are read."""

import json
import zipfile

import numpy as np
import pytest

from tests import tiny
from tests.modes.test_evaluate import refused
from vitdiff_jax.data.pipeline import DataError
from vitdiff_jax.evaluation.psnr import psnr
from vitdiff_jax.inference import pairs, provenance
from vitdiff_jax.interop import sheets
from vitdiff_jax.interop.images import save_npz, save_png

pytestmark = pytest.mark.usefixtures("plain")
RANDOM = np.random.default_rng(0)
TRUE = RANDOM.integers(0, 256, (12, 8, 8, 1), np.uint8)
NEAR = np.clip(TRUE.astype(int) + np.arange(1, 13)[:, None, None, None], 0, 255).astype(np.uint8)
METRICS = "--config.evaluate.metrics=('psnr',)"


def folder(home, images):
    """{name: image} as files."""
    for name, image in images.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        save_png(home / name, image)
    return home


def measured(config, tmp_path, samples, truth):
    flags = [config, f"--workdir={tmp_path / 'run'}", "--mode=evaluate", METRICS]
    assert tiny.call(*flags, f"--samples={samples}", f"--truth={truth}") == 0
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    return report["rows"][0]["results"]["psnr/uint8"]["value"]


# --- Names ---


@pytest.mark.parametrize(
    ("samples", "truth", "wanted"),
    [
        (["a.png", "b.png"], ["a.png", "b.png"], [0, 1]),
        (["a.png", "b.png"], ["b.jpg", "a.bmp"], [1, 0]),
        (["0.png", "1.png", "10.png", "2.png"],
         ["0000.png", "0001.png", "0002.png", "0010.png"], [0, 1, 3, 2]),
        (["x1_2.png", "x1_10.png"], ["x01_010.png", "x01_002.png"], [1, 0]),
        (["trip/a.png", "a.png"], ["a.png", "trip/a.png"], [1, 0]),
        (["out/a.png", "out/b.png"], ["b.png", "a.png"], [1, 0]),
        (["a.png.png", "a.bmp.png"], ["a.bmp", "a.png"], [1, 0]),  # as --mode=restore names them
        (["a.png.png", "z.png"], ["a.png", "z.png"], [0, 1]),
        (["1.png", "01.png"], ["01.png", "1.png"], [1, 0]),  # themselves before their numbers
        (["caf\u00e9.png"], ["cafe\u0301.png"], [0]),  # written by another system
    ],
    ids=str,
)  # fmt: skip
def test_names_that_match(samples, truth, wanted):
    assert pairs.match(samples, truth) == wanted


@pytest.mark.parametrize(
    ("samples", "truth", "message"),
    [
        (["a.png", "b.png"], ["c.png", "d.png"],
         "no truth for a.png, b.png; no sample for c.png, d.png"),
        (["a.png"], ["a.png", "b.png"], "no sample for b.png"),
        (["a.png", "b.png"], ["a.png"], "no truth for b.png"),
        (["a.png", "a.jpg"], ["a.bmp", "b.bmp"], "no sample for b.bmp"),
        (["1.png", "01.jpg"], ["001.png", "2.png"], "no sample for 2.png"),
        (["x/a.png", "y/a.png"], ["a.png", "b.png"], "no sample for b.png"),
        ([f"{i}.png" for i in range(9)], [f"t{i}.png" for i in range(9)],
         "no truth for 9 files (0.png, 1.png, 2.png, ...); no sample for 9 files (t0.png, t1"),
        (["a.png", "a.jpg"], ["a.bmp"], "the same name for"),
        (["photo_restored.png"], ["photo.png"], "no truth for photo_restored.png"),
    ],
    ids=str,
)  # fmt: skip
def test_names_that_do_not_match_are_refused(samples, truth, message):
    with pytest.raises(DataError) as caught:
        pairs.match(samples, truth)
    start = "--truth: the names of the files do not match those of --samples: "
    assert str(caught.value).startswith(start + message)


def test_many_names_are_quick():
    """Ten thousand, in two orders."""
    names = [f"{i}.png" for i in range(10_000)]
    padded = sorted(f"{i:07d}.jpg" for i in range(10_000))
    assert pairs.match(sorted(names), padded) == [int(name[:-4]) for name in sorted(names)]


def test_an_array_goes_by_the_numbers_of_the_files():
    assert pairs.by_number(["0.png", "10.png", "9.png"], "--truth") == [0, 2, 1]
    with pytest.raises(DataError, match=r"^--truth: cat.png, dog.png pair with .* not numbered"):
        pairs.by_number(["cat.png", "dog.png"], "--truth")


# --- From outside ---


def test_numbers_without_zeros_are_paired_rightly(tmp_path, config):
    """0.png to 11.png sort as 0, 1, 10, 11, 2, ..."""
    samples = folder(tmp_path / "samples", {f"{i}.png": NEAR[i] for i in range(12)})
    truth = folder(tmp_path / "truth", {f"{i:04d}.png": TRUE[i] for i in range(12)})
    wanted = pytest.approx(psnr(NEAR, TRUE).mean())
    assert measured(config, tmp_path, samples, truth) == wanted
    with zipfile.ZipFile(tmp_path / "truth.zip", "w") as archive:
        for path in truth.iterdir():
            archive.write(path, f"inside/{path.name}")
    assert measured(config, tmp_path, samples, tmp_path / "truth.zip") == wanted
    save_npz(tmp_path / "truth.npz", TRUE)
    assert measured(config, tmp_path, samples, tmp_path / "truth.npz") == wanted
    save_npz(tmp_path / "samples.npz", NEAR)
    assert measured(config, tmp_path, tmp_path / "samples.npz", samples) is None  # all perfect
    assert measured(config, tmp_path, tmp_path / "samples.npz", truth) == wanted


def test_other_names_are_one_line(tmp_path, config, capsys):
    samples = folder(tmp_path / "samples", {"a.png": NEAR[0], "b.png": NEAR[1]})
    truth = folder(tmp_path / "truth", {"c.png": TRUE[0], "d.png": TRUE[1]})
    flags = [config, f"--workdir={tmp_path / 'run'}", METRICS, f"--samples={samples}"]
    code, found = refused(capsys, *flags, f"--truth={truth}")
    assert (code, found.partition(": ")[0]) == (1, "--truth")
    assert "no truth for a.png, b.png; no sample for c.png, d.png" in found
    assert not (tmp_path / "run" / "evaluation.json").exists()


def test_truth_that_no_metric_looks_at(tmp_path, config, capsys):
    samples = folder(tmp_path / "samples", {f"{i}.png": NEAR[i] for i in range(12)})
    flags = [config, f"--workdir={tmp_path / 'run'}", f"--samples={samples}"]
    code, found = refused(capsys, *flags, f"--truth={samples}")
    assert (code, found.partition(";")[0]) == (
        2, "--truth: no metric of config.evaluate.metrics compares pairs"
    )  # fmt: skip


# --- What --mode=restore leaves ---


def restored(home, name, image, **more):
    """The files of a restored picture with two samples."""
    made = provenance.record("restore", 0, source=name, **more)
    wide = np.tile(image, (3, 4, 1))
    for end, shows, pixels in (
        ("", "restored", image), ("-1", "sample 1", image), ("-2", "sample 2", image),
        ("-beside", "beside", wide), ("-uncertainty", "uncertainty", image),
    ):  # fmt: skip
        home.mkdir(exist_ok=True)
        save_png(home / f"{name}{end}.png", pixels, text=provenance.chunk(made, shows=shows))


def test_restored_pictures_against_their_originals(tmp_path, config, capsys):
    """As docs/generation.md has it; and "a-1" may be a picture of its own."""
    for name, image in (("a", NEAR[0]), ("b", NEAR[1])):
        restored(tmp_path / "restored", name, image)
    truth = folder(tmp_path / "truth", {"a.png": TRUE[0], "b.png": TRUE[1]})
    wanted = pytest.approx(psnr(NEAR[:2], TRUE[:2]).mean())
    assert measured(config, tmp_path, tmp_path / "restored", truth) == wanted
    said = capsys.readouterr().out
    assert "--samples: left out 8 files (a-1.png, a-2.png, a-beside.png, ...)" in said


@pytest.mark.parametrize("paired", [False, True])
def test_figures_of_benchmarks_are_no_results(tmp_path, paired, capsys):
    """Their names are those of tasks; a picture of such a name is one."""
    given = {f"{name}.png": NEAR[i] for i, name in enumerate("abz")}
    samples = folder(tmp_path / "samples", given | {"inpaint.png": NEAR[3]})
    made = provenance.record("restore", 0, task="denoise")
    for name in ("denoise", "upscale_factor_2"):
        text = provenance.chunk(made, shows="benchmark")
        save_png(samples / f"{name}.png", np.tile(NEAR[0], (3, 4, 1)), text=text)
    truth = folder(tmp_path / "truth", given | {"inpaint.png": NEAR[3]}) if paired else None
    found, _ = pairs.open_pair(samples, truth)
    assert (len(found), found.shape) == (4, (8, 8, 1))
    assert "--samples: left out denoise.png, upscale_factor_2.png, which" in capsys.readouterr().out


def test_our_sheets_of_older_versions_go_by_their_names(tmp_path, config):
    """A picture that happens to be called so, and has no other beside it, stays."""
    given = {"a.png": NEAR[0], "a-beside.png": np.tile(NEAR[0], (1, 2, 1)), "b.png": NEAR[1],
             "far-beside.png": NEAR[2], "b-1.png": NEAR[3]}  # fmt: skip
    samples = folder(tmp_path / "samples", given)
    truth = {"a.png": TRUE[0], "b.png": TRUE[1], "far-beside.png": TRUE[2], "b-1.png": TRUE[3]}
    found = measured(config, tmp_path, samples, folder(tmp_path / "truth", truth))
    assert found == pytest.approx(psnr(NEAR[:4], TRUE[:4]).mean())


def test_sheets_are_not_images(tmp_path, config, capsys):
    """Of which --mode=sample writes one for all."""
    sheet = sheets.Sheet("samples", NEAR[:4, None], 2)
    (tmp_path / "samples").mkdir()
    sheets.write(tmp_path / "samples" / "step0-seed0-n4.png", sheet)
    flags = [config, f"--workdir={tmp_path / 'run'}", f"--samples={tmp_path / 'samples'}"]
    code, found = refused(capsys, *flags)
    assert (code, found.partition(" in ")[0]) == (1, "--samples: step0-seed0-n4.png")
    assert "is a sheet of several images; --mode=sample --npz writes" in found
