"""The quality of a JPEG file, as it was saved with; and what is said where there is none."""

import numpy as np
import pytest
from PIL import Image

from vitdiff_jax.inference import compression
from vitdiff_jax.operators import jpeg

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)


@pytest.fixture
def saved(tmp_path):
    def save(kind="JPEG", channels=3, name="photo.jpg", **options):
        Image.fromarray(PIXELS if channels == 3 else PIXELS[..., 0]).save(
            tmp_path / name, kind, **options
        )
        return tmp_path / name

    return save


@pytest.mark.parametrize("quality", [1, 2, 20, 49, 50, 75, 95, 100])
def test_quality_is_what_pillow_saved_with(saved, quality, capsys):
    wanted = f"artefacts:quality={quality},subsampling=420"
    path = saved(quality=quality, subsampling=2, progressive=quality % 2 == 1)
    found = compression.resolved("artefacts", path)
    if quality > 2:  # at 1 and 2 many tables are 255
        assert found == wanted
    assert (jpeg.tables(int(found.split("=")[1].split(",")[0]))[0] == jpeg.tables(quality)[0]).all()
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "sampling", "said"),
    [
        ({"subsampling": 0}, "444", "quality=60, 444\n"),
        ({"subsampling": 1}, "420", "quality=60, 422, for the nearest, 420\n"),
        ({"channels": 1}, "420", "quality=60, 420\n"),
    ],
)
def test_subsampling_is_the_files_or_the_nearest_that_there_is(
    saved, capsys, options, sampling, said
):
    found = compression.resolved("artefacts", saved(quality=60, **options))
    assert found == f"artefacts:quality=60,subsampling={sampling}"
    assert capsys.readouterr().out.endswith(said)


def test_tables_of_another_program_are_those_of_the_nearest_quality(saved, capsys):
    tables = [(np.clip(table + 1, 1, 255)).ravel().tolist() for table in jpeg.tables(40)]
    found = compression.resolved("artefacts", saved(qtables=tables, subsampling=2))
    assert found in [f"artefacts:quality={q},subsampling=420" for q in (38, 39, 40)]
    assert "the nearest to its own tables" in capsys.readouterr().out


def test_what_is_stated_wins(saved, capsys):
    path = saved(quality=60)
    for task in (
        "artefacts:quality=33",
        "denoise",
        "upscale:factor=2",
        "artefacts:=",
        "edit",
    ):
        assert compression.resolved(task, path) == task
    assert not capsys.readouterr().out
    found = compression.resolved("artefacts:subsampling=444", path)
    assert found == "artefacts:quality=60,subsampling=444"
    exif = Image.Exif()
    for exif[274], turned in {1: "", 6: ",orientation=6", 9: ""}.items():
        found = compression.resolved("artefacts", saved(quality=60, exif=exif))
        assert found == f"artefacts:quality=60,subsampling=420{turned}"


def test_what_is_no_jpeg_file_has_the_default_and_says_so(saved, capsys):
    png = saved("PNG", name="photo.png")
    with Image.open(saved(quality=70)) as image:
        assert "quality=70" in compression.resolved("artefacts", image)
        copied = image.copy()
    for given in (png, copied, PIXELS):
        capsys.readouterr()
        assert compression.resolved("artefacts", given) == "artefacts:quality=20"
        said = capsys.readouterr().out
        assert said.endswith("is no JPEG file; quality=20 is assumed\n")


def test_what_cannot_be_read_is_left_to_its_reader(tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("no picture")
    for name in ("text.jpg", "none.jpg", ""):
        assert compression.resolved("artefacts", tmp_path / name) == "artefacts"
    assert not capsys.readouterr().out
