"""A number that is not there, NaN or infinite: never the best, and no page breaks."""

import json
import math
from unittest import mock

import numpy as np
import pytest

from tests.parts import quick
from tests.reporting import reports
from vitdiff_jax.evaluation import psnr
from vitdiff_jax.evaluation.metric import Batch, Measured, Setting
from vitdiff_jax.modes import evaluate, report
from vitdiff_jax.reporting import plots
from vitdiff_jax.runtime import logs, parallel, tables

NAN, INF = math.nan, math.inf
RANDOM = np.random.default_rng(0)


def refuse(token):
    raise AssertionError(token)


class Distance:
    name, higher_is_better = "fd", False


class Share:
    name, higher_is_better = "right", True


def rows(*values):
    """Rows of a sweep over guidance; ...: a row without results."""
    return [
        {"guidance": float(i), "results": {} if v is ... else {"fd": {"value": v}}, "seconds": 1.0}
        for i, v in enumerate(values)
    ]


def evaluation(*values, best=None, real=None):
    real_images = real and {"of": "9 real images", "results": {"fd": {"value": real}}}
    return {"rows": rows(*values), "best": best, "images": 9, "real_images": real_images}


@pytest.mark.parametrize(
    ("values", "least", "most"),
    [((3.0, NAN, 1.0), 2, 0), ((NAN, 2.0), 1, 1), ((-INF, 2.0, INF), 1, 1), ((None, ..., 5), 2, 2),
     ((NAN, None, ..., INF), None, None), ((np.float32(2), np.float32("nan")), 0, 0)],
    ids=str,
)  # fmt: skip
def test_the_best_is_a_number(values, least, most):
    found = rows(*values)
    assert evaluate._best(Distance, found) == least
    renamed = [row | {"results": {"right": row["results"].get("fd", {})}} for row in found]
    assert evaluate._best(Share, renamed) == most


@pytest.mark.parametrize("best", [1, None])
def test_tables_have_a_dash(best):
    head, *lines = tables.of_evaluation(rows(NAN, 0.5, None, ..., INF), None, best)
    assert head == ["", "guidance", "fd"]
    assert [line[2] for line in lines] == ["-", "0.5000", "-", "-", "-"]
    assert [line[0] for line in lines] == ["", "best" if best else "", "", "", ""]


def test_a_metric_that_some_rows_lack():
    found = rows(..., 0.5)
    found[1]["results"]["kid"] = {"value": NAN, "error": 0.25}
    head, *lines = tables.of_evaluation(found, ("9 images", {"kid": {"value": INF}}), 1)
    assert head[2:] == ["fd", "kid", "kid error"]
    assert [line[2:] for line in lines] == [["-"] * 3, ["0.5000", "-", "0.2500"], ["", "-", ""]]


def test_benchmarks_have_a_dash():
    found = [
        {"task": "t", "method": str(i), "results": {} if v is ... else {"psnr": v}}
        for i, v in enumerate(
            [{"value": 20.0, "standard_error": 0.5}, {"value": NAN, "standard_error": NAN}, ...,
             {"value": None, "standard_error": None, "perfect": 4},
             {"value": 20.0, "standard_error": NAN, "perfect": 1}]
        )
    ]  # fmt: skip
    _, *lines = tables.of_restoration(found)
    assert [line[2] for line in lines] == [
        "20.000 ± 0.980", "-", "-", "- (4 perfect)", "20.000 (1 perfect)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "values",
    quick(
        [(NAN, 2.0, 1.0), (..., 1.0)],
        [(NAN, 2.0, 1.0), (None, None), (INF, 1.0), (..., 1.0), (..., NAN)],
    ),
    ids=str,
)
def test_plots_leave_a_gap(tmp_path, values):
    for real in (None, NAN, 0.5):
        found = evaluation(*values, best=evaluate._best(Distance, rows(*values)), real=real)
        assert plots.sweep_panel(found, "fd").startswith("<svg")
        read_back = json.loads(json.dumps(tables.finite(found)))  # None for what is not finite
        assert plots.sweep_panel(read_back, "fd").startswith("<svg")
    plots.sweep(tmp_path / "sweep.png", found)
    assert (tmp_path / "sweep.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("values", [(None, 2.0), (None, None), (..., 1.0)], ids=str)
def test_the_page_shows_the_others(tmp_path, values):
    workdir = reports.workdir(tmp_path / "run")
    found = evaluation(*values, best=evaluate._best(Distance, rows(*values)), real=0.5)
    tables.write(workdir / "evaluation.json", found)
    page = reports.Page(report.write(workdir))
    assert "Evaluation" in page.headings
    assert "Evaluation: " not in page.text  # what a problem starts with
    assert "fd" in page.captions  # its panel is there


def test_json_is_json(tmp_path):
    """Strict parsers know no NaN."""
    given = {"a": NAN, "b": [INF, np.float32("nan"), np.float64(-INF)], "c": (np.int64(3), 1.5)}
    tables.write(tmp_path / "a.json", given)
    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert found == {"a": None, "b": [None, None, None], "c": [3, 1.5]}


def test_metrics_are_json_in_every_line(tmp_path):
    writer = object.__new__(logs.Metrics)
    writer.main, writer.path = True, tmp_path / "metrics.jsonl"
    writer.events, writer.spool = mock.Mock(), mock.Mock(due=False)
    writer.write(3, {"loss": NAN, "grad_norm": np.float32(INF), "rate": 0.5})
    found = json.loads(writer.path.read_text(), parse_constant=refuse)
    assert found == {"step": 3, "loss": None, "grad_norm": None, "rate": 0.5}


def test_a_perfect_picture_is_counted_and_not_averaged():
    """The mean of the others, as by hand; in two batches and after a restart."""
    images = RANDOM.integers(0, 200, (6, 8, 8, 1), np.uint8)
    truth = images + np.array([0, 3, 0, 5, 9, 1], np.uint8)[:, None, None, None]
    metric = psnr.Metric(Setting(lambda: None, parallel.make_mesh()))
    measured = Measured(metric.parts, 6)
    measured.update(Batch(images[:3], {}, truth[:3]))
    again = Measured(metric.parts, 6)
    for part, state in again.found.items():
        state.load(measured.found[part].arrays())
    again.update(Batch(images[3:], {}, truth[3:]))
    found = metric.result(again.of(metric), ())
    decibels = 20 * np.log10(255 / np.array([3, 5, 9, 1]))
    assert found["perfect"] == 2
    assert found["value"] == pytest.approx(decibels.mean())
    assert found["standard_error"] == pytest.approx(decibels.std(ddof=1) / 2)


def test_only_perfect_pictures_have_no_mean():
    images = RANDOM.integers(0, 200, (2, 8, 8, 1), np.uint8)
    metric = psnr.Metric(Setting(lambda: None, parallel.make_mesh()))
    measured = Measured(metric.parts, 2)
    measured.update(Batch(images, {}, images))
    found = metric.result(measured.of(metric), ())
    assert (found["perfect"], math.isnan(found["value"])) == (2, True)
