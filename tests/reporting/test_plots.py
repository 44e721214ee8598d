"""Plots: a single point is seen, on axes that have a length; sweeps over what differs."""

import re

import pytest

from vitdiff_jax.reporting import plots


@pytest.fixture
def axes(monkeypatch):
    """Every panel that is drawn: its axes."""
    found = []
    drawn = plots._svg

    def svg(name, draw):
        return drawn(name, lambda axes: (draw(axes), found.append(axes)))

    monkeypatch.setattr(plots, "_svg", svg)
    return found


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels() if label.get_text()]


@pytest.mark.parametrize("value", [0.7, 0.0, -3.0, 1e-9, 2e6])
def test_a_single_point_is_seen(axes, value):
    """Its marker, its step as the only tick, and room around it on both axes."""
    plots.curves({"training": ([60.0], [value])}, "step", "loss")
    (found,) = axes
    (line,) = found.get_lines()
    assert line.get_marker() == "o"
    (low, high), (bottom, top) = found.get_xlim(), found.get_ylim()
    assert low < 60 < high
    assert bottom < value < top
    assert top - bottom >= abs(value) * 0.9
    assert list(found.get_xticks()) == [60]
    assert found.get_legend_handles_labels()[1] == []


def test_a_constant_is_a_line_in_the_middle(axes):
    plots.curves({"rate": ([1.0, 2.0, 3.0], [1e-3] * 3)}, "step", "rate")
    bottom, top = axes[0].get_ylim()
    assert (bottom, top) == pytest.approx((0.5e-3, 1.5e-3))
    assert all(tick == int(tick) for tick in axes[0].get_xticks())  # there is no step 1.5


def test_what_is_not_finite_leaves_no_axis_without_end(axes):
    plots.curves({"loss": ([1.0], [float("nan")])}, "step", "loss")
    assert axes[0].get_xlim()[1] > axes[0].get_xlim()[0]


@pytest.mark.parametrize(
    ("values", "scale"),
    [([100.0, 2.0, 1.0, 1.0, 1.0], "log"), ([3.0, 2.0, 1.0, 1.0, 1.0], "linear"),
     ([100.0, 2.0, 1.0, 1.0, -1.0], "linear")],
)  # fmt: skip
def test_a_few_large_values_make_the_axis_logarithmic(axes, values, scale):
    """Such as the first losses, above which the others would be a flat line; of all positive."""
    plots.curves({"loss": ([1.0, 2.0, 3.0, 4.0, 5.0], values)}, "step", "loss")
    assert axes[0].get_yscale() == scale


def report(rows, real=0.5):
    """An evaluation of rows of settings and a value."""
    return {
        "rows": [
            settings | {"results": {"fid": {"value": value}}, "seconds": 1.0, "network_calls": 9}
            for settings, value in rows
        ],
        "best": 0, "real_images": {"of": "it", "results": {"fid": {"value": real}}},
    }  # fmt: skip


def test_a_sweep_over_names_has_a_place_for_each(axes):
    rows = [({"guidance": 1.0, "sampler": name, "steps": 5}, 2.0) for name in ("heun", "ddim")]
    svg = plots.sweep_panel(report(rows), "fid")
    assert axes[0].get_xlabel() == "sampler"
    assert labels(axes[0].xaxis) == ["ddim", "heun"]
    assert list(axes[0].get_lines()[0].get_xdata()) == [0, 1]
    assert "score of real images" in svg


def test_a_sweep_over_numbers_has_them_as_ticks(axes):
    rows = [
        ({"guidance": g, "sampler": name, "steps": 5}, g)
        for name in ("heun", "ddim", "euler") for g in (1.0, 2.5)
    ]  # fmt: skip
    svg = plots.sweep_panel(report(rows), "fid")
    assert axes[0].get_xlabel() == "guidance"
    assert labels(axes[0].xaxis) == ["1.0", "2.5"]
    assert re.findall("sampler (?:heun|ddim|euler)", svg) == [
        f"sampler {name}" for name in ("heun", "ddim", "euler")
    ]


def test_a_sweep_of_a_single_value(axes):
    """As `--mode=evaluate` draws it of rows that differ in nothing that is a setting."""
    rows = [({"guidance": 1.5, "steps": 5}, 2.0)] * 2
    plots.sweep_panel(report(rows, real=2.0), "fid")
    (low, high), (bottom, top) = axes[0].get_xlim(), axes[0].get_ylim()
    assert high - low == pytest.approx(2)
    assert (bottom, top) == pytest.approx((1, 3))
    assert labels(axes[0].xaxis) == ["1.5"]


def test_ticks_that_would_touch_are_left_to_matplotlib(axes):
    rows = [({"guidance": g}, g) for g in (1.0, 1.01, 5.0)]
    plots.sweep_panel(report(rows), "fid")
    assert "1.01" not in labels(axes[0].xaxis)
