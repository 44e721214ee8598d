"""The report: what a workdir holds is on the page, what is broken is named, nothing is fetched."""

import json
import os
import re

import numpy as np
import pytest

from tests import tiny
from tests.reporting import reports
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.modes import report
from vitdiff_jax.reporting import page

HEADINGS = ["Samples", "Curves", "Evaluation", "Restoration", "Plan", "Config", "Versions"]


@pytest.fixture
def workdir(tmp_path):
    return reports.workdir(tmp_path / "run")


def written(workdir):
    return reports.Page(report.write(workdir))


def test_all_that_is_there_is_shown(workdir, capsys):
    found = written(workdir)
    assert found.headings == HEADINGS
    assert found.lead == "Model vit, trained on stamps: 3 classes, 241 images of 8x8 pixels"
    for text in ("1,234,567", "model.width", "block/attention"):
        assert text in found.text
    labels = found.all("div", "aria-label")
    assert "Loss: training 1.5 at step 10, 0.5 at step 20; held out 0.75 at step 20." in labels
    assert "fd/pixels of 2 sampling settings: 0.25 to 0.75." in labels
    assert found.text.count("<svg") == 5
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "heading"),
    [("samples", "Samples"), ("metrics.jsonl", "Curves"), ("evaluation.json", "Evaluation"),
     ("restoration.json", "Restoration"), ("plan.json", "Plan"), ("config.json", "Config")],
)  # fmt: skip
def test_what_is_not_there_is_left_out(workdir, tmp_path, name, heading):
    alone = tmp_path / "alone"
    alone.mkdir()
    (workdir / name).rename(alone / name)
    assert written(workdir).headings == [h for h in HEADINGS if h != heading]
    if name != "restoration.json":  # whose pictures stayed behind
        assert written(alone).headings == [heading, "Versions"]


def test_nothing_is_asked_of_a_network(workdir):
    """Every address is a picture in the page or a place in it, and a policy says so to browsers."""
    found = written(workdir)
    ids = found.all("h2", "id")
    for _, attributes in found.elements:
        for name in ("src", "href"):
            address = attributes.get(name, "data:")
            assert address.startswith("data:") or address.startswith("#")
    assert [link.lstrip("#") for link in found.all("a", "href")] == ids
    bare = re.sub(r"data:image/\w+;base64,[\w+/=]*", "", found.text)
    assert "//" not in bare
    assert "default-src 'none'" in found.all("meta", "content")[-1]


def test_plots_have_no_colours_of_their_own(workdir):
    """They would be seen in one theme only."""
    plots = re.findall(r"<svg.*?</svg>", written(workdir).text, flags=re.S)
    assert len(plots) == 5
    for plot in plots:
        assert "stroke: var(--series-1)" in plot
        assert not re.search(r"(fill|stroke): #", plot)


def test_no_id_stands_there_twice(workdir):
    """Clips and markers of a plot belong to it alone."""
    ids = [found["id"] for _, found in written(workdir).elements if "id" in found]
    assert len(set(ids)) == len(ids) > 10


def test_pictures_are_those_of_the_files(workdir):
    found = written(workdir).pictures
    for step in (10, 20):
        sheet = found[f"4 samples of 3 classes, step {step}; columns: cat, dog, eel"]
        assert sheet.shape == (18, 27, 2)
        for row, column in ((0, 0), (0, 1), (0, 2), (1, 0)):  # the second cat
            cell = sheet[9 * row : 9 * row + 8, 9 * column : 9 * column + 8]
            assert (cell == (10 * step, 255)).all()
        assert (sheet[9:, 9:] == 0).all()  # nothing: no colour of its own
    np.testing.assert_array_equal(found["cat.png, degraded"], reports.BESIDE[0, ..., 0])
    np.testing.assert_array_equal(found["cat.png, restored"], reports.BESIDE[1, ..., 0])
    way = found["Sampling trajectories, noise → image; columns: noise, →, image; rows: cat, dog"]
    for row, column in np.ndindex(2, 3):
        cell = way[9 * row : 9 * row + 8, 9 * column : 9 * column + 8]
        np.testing.assert_array_equal(cell[..., :3], reports.SHEET[row, column])


def test_a_benchmark_shows_each_method(workdir):
    """A row for each, one image below the other."""
    reports.grid(workdir / "restored" / "denoise.png", reports.SHEET.reshape(-1, 8, 8, 3), 3)
    compared = json.dumps(reports.COMPARED)
    (workdir / "restoration.json").write_text(compared.replace("20.0", "null"))
    found = written(workdir)  # JSON has no number that is not finite
    assert found.text.count("<td>-</td>") == 2
    assert "Not shown" not in found.text
    (workdir / "restoration.json").write_text(compared)
    found = written(workdir)
    assert "20.000 ± 0.980" in found.text
    assert ["degraded", "ddrm", "original"] in found.names("rows")
    assert "denoise: degraded, restored by each method, and original" in found.captions
    sheet = found.pictures["denoise; rows: degraded, ddrm, original"]
    for column, row in np.ndindex(4, 3):
        cell = sheet[9 * row : 9 * row + 8, 9 * column : 9 * column + 8]
        np.testing.assert_array_equal(cell[..., :3], reports.SHEET[column, row])


HEADS = [
    ({"name": "digits"}, {}, "digits: 3 classes, 241 images of 8x8 pixels"),
    ({"name": "folder", "path": "/data/stamps.zip"}, {"classes": None},
     "stamps: 241 images of 8x8 pixels"),
    ({"name": "celeba"}, dict(classes=None, attributes=40, images=162770, shape=[64, 48, 3]),
     "celeba: 40 attributes, 162,770 images of 48x64 pixels"),
    ({"name": "imagenet"}, None, "imagenet"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "changed", "words"), HEADS, ids=lambda value: str(value)[:20])
def test_the_head_says_what_the_data_are(workdir, data, changed, words):
    """None: a workdir from before data.json, or of imported weights."""
    (workdir / "config.json").write_text(json.dumps(reports.CONFIG | {"data": data}))
    if changed is None:
        (workdir / "data.json").unlink()
    else:
        (workdir / "data.json").write_text(json.dumps(reports.DATA | changed))
    assert written(workdir).lead == f"Model vit, trained on {words}"


BREAK = {
    "samples/00000010.png": "samples/00000010.png: not an image",
    "samples/00000020-n2-frames3.png": "samples/00000020-n2-frames3.png: not an image",
    "metrics.jsonl": "metrics.jsonl: 1 lines cannot be read",
    "evaluation.json": "Evaluation: ValueError: evaluation.json: ",
    "restoration.json": "Restoration: ValueError: restoration.json: ",
    "restored/cat-beside.png": "restored/cat.png: not an image",
    "plan.json": "Plan: ValueError: plan.json: ",
    "config.json": "Config: ValueError: config.json: ",
}


@pytest.mark.parametrize(("name", "line"), BREAK.items(), ids=str)
def test_a_broken_file_is_named_in_its_place(workdir, capsys, name, line):
    (workdir / name).write_bytes(b"\xff\x00 broken\n")
    found = written(workdir)
    assert found.headings == HEADINGS
    assert f"<strong>Not shown:</strong> {line}" in found.text
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith(f"warning: report: {line}")


@pytest.mark.parametrize("name", ["evaluation", "restoration", "plan", "config", "data"])
@pytest.mark.parametrize("text", ["[]", '{"rows": 3, "model": 5, "train": []}'])
def test_json_of_another_shape_is_no_crash(workdir, name, text):
    (workdir / f"{name}.json").write_text(text)
    found = written(workdir).headings
    assert [heading for heading in found if heading != "Data"] == HEADINGS
    assert ("Data" in found) == ((name, text) == ("data", "[]"))  # which says that it is broken


def test_files_are_text_and_no_page(workdir):
    """Names and values from files are escaped wherever they stand, in plots too."""
    evil = "<script>alert(1)</script>\"'&"
    changed = json.loads(json.dumps(reports.EVALUATION).replace("fd/pixels", "NAME"))
    text = json.dumps(changed).replace('"NAME"', json.dumps(evil))
    (workdir / "evaluation.json").write_text(text)
    (workdir / "config.json").write_text(json.dumps({"model": {"name": evil}, evil: evil}))
    reports.samples(workdir, evil.replace("/", ""), reports.SHEET[:, 0], [evil] * 4, prompt=evil)
    reports.samples(workdir, "b", reports.SHEET[:, 1], [evil, "b"] * 2)
    (workdir / "samples" / f"{evil.replace('/', '')}2.png").write_bytes(b"broken")
    (workdir / "metrics.jsonl").write_text(json.dumps({"step": 1, f"{evil}/ema1/value": 2.0}))
    found = written(workdir)
    assert found.headings == HEADINGS
    assert len([tag for tag, _ in found.elements if tag == "script"]) == 1
    assert all(src.startswith("data:") for src in found.all("img", "src"))
    assert found.text.count("&lt;script&gt;") >= 8
    assert found.text.count("Not shown") == 1


def test_nothing_outside_the_workdir_is_shown(workdir, tmp_path):
    (workdir / "restored" / "cat.png").rename(tmp_path / "cat.png")
    (workdir / "restored" / "cat-beside.png").rename(tmp_path / "cat-beside.png")
    text = json.dumps(reports.PAIR).replace("restored/cat.png", "../cat.png")
    (workdir / "restoration.json").write_text(text)
    found = written(workdir)
    assert "../cat.png is not in the workdir" in found.text
    assert "cat.png, degraded" not in found.pictures


def test_a_long_run_stays_small(workdir):
    """Points of curves are means of as many neighbours; grids are chosen evenly, with both ends."""
    lines = [{"step": i, "loss": float(i % 2)} for i in range(1, 40_001)]
    (workdir / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for step in range(21, 120):
        images = np.random.default_rng(step).integers(0, 256, (4, 8, 8, 1), np.uint8)
        reports.samples(workdir, f"{step:08d}", images, ["cat", "dog", "eel", "cat"], step=step)
    found = written(workdir)
    x, y = report._series(lines, "loss")
    assert len(x) == report.POINTS
    assert (x[0], y[0]) == (50.5, 0.5)
    grids = [alt for alt in found.pictures if ", step " in alt]
    assert len(grids) == 20
    what = "4 samples of 3 classes, step"
    assert {f"{what} {i}; columns: cat, dog, eel" for i in (10, 119)} <= set(grids)
    assert any(caption.endswith("; 20 of 101 steps") for caption in found.captions)


def test_a_loss_that_is_not_finite_leaves_a_gap(workdir):
    lines = [{"step": i, "loss": {2: float("nan"), 3: None}.get(i, 1.0)} for i in range(1, 6)]
    (workdir / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert "Not shown" not in written(workdir).text


@pytest.mark.parametrize("shape", [(2500, 2500, 3), (900, 1500, 1), (40, 3000, 3)])
def test_no_picture_is_larger_than_promised(shape):
    """Noise is what compresses worst."""
    found = page.picture(np.random.default_rng(0).integers(0, 256, shape, np.uint8), "noise")
    assert len(found.uri) < 4 / 3 * page.MOST_BYTES + 100
    assert max(found.width, found.height) <= page.MOST_SIDE
    assert found.width / found.height == pytest.approx(shape[1] / shape[0], rel=0.05)


@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (2, 5)])
def test_a_grid_is_cut_as_it_was_put_together(rows, columns):
    images = np.random.default_rng(0).integers(0, 256, (rows * columns, 50, 60, 3), np.uint8)
    found = image_lib.cells(image_lib.grid(images, columns), rows, columns)
    np.testing.assert_array_equal(found.reshape(images.shape), images)
    with pytest.raises(ValueError, match="are not a grid of 4 x 7 images"):
        image_lib.cells(image_lib.grid(images, columns), 4, 7)


@pytest.mark.usefixtures("drawn_anew")
def test_the_same_files_give_the_same_page(workdir):
    first = report.write(workdir).read_bytes()
    assert report.write(workdir).read_bytes() == first


def test_by_the_command(workdir, capsys):
    assert tiny.call(f"--workdir={workdir}", "--mode=report") == 0
    assert capsys.readouterr().out.endswith(f"report in {workdir / 'report.html'}\n")
    assert tiny.call(f"--workdir={workdir}", "--mode=report", "--config.train.steps=3") == 2
    assert capsys.readouterr().err == "error: --mode=report: takes --workdir only\n"


def test_an_empty_workdir_is_one_line(tmp_path, capsys):
    for workdir in (tmp_path, tmp_path / "not there"):
        assert tiny.call(f"--workdir={workdir}", "--mode=report") == 2
        assert capsys.readouterr().err == (
            f"error: {workdir}: nothing to report, none of the files that a run leaves is here; is"
            " this its workdir?\n"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_ends_no_run(workdir, capsys, monkeypatch):
    """And what was there before stays whole."""
    before = report.write(workdir).read_bytes()

    def replace(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    report.at_end(workdir)
    line = "warning: no report: OSError: [Errno 28] No space left on device\n"
    assert capsys.readouterr().out == line
    assert (workdir / "report.html").read_bytes() == before


def test_one_process_writes_it(workdir, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    report.at_end(workdir)
    assert not (workdir / "report.html").exists()
