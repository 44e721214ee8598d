"""Plots of results: the only file that imports matplotlib."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
from etils import epath

from vitdiff_jax.runtime import paths, tables

Line = tuple[Sequence[float], Sequence[float]]
"""x and y."""
SIZE = (4.6, 2.9)
"""Of a panel of a page, inches: at this size its letters can be read on a phone."""
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.markersize": 4,
}
STEPS: dict[str, Any] = {"nbins": "auto", "steps": [1, 2, 2.5, 5, 10]}
"""Of ticks, as matplotlib's own locator has them."""
COLOURS = {  # matplotlib's own -> the page's, which follow the reader's theme
    "#1f77b4": "--series-1", "#ff7f0e": "--series-2", "#2ca02c": "--series-3",
    "#d62728": "--series-4", "#9467bd": "--series-5", "#8c564b": "--series-6",
    "#e377c2": "--series-1", "#7f7f7f": "--series-2", "#bcbd22": "--series-3",
    "#17becf": "--series-4", "#000000": "--ink", "#808080": "--muted", "#b0b0b0": "--line",
}  # fmt: skip


def sweep(path: epath.Path, report: dict[str, Any], text: Mapping[str, str] = {}) -> None:
    """A PNG file with one panel for each metric of an evaluation's rows, see `sweep_panel`.

    text: text chunks, by keyword.
    """
    from matplotlib.figure import Figure  # half a second to import: only where something is plotted

    names = list(dict.fromkeys(name for row in report["rows"] for name in row["results"]))
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, metric in zip(panels, names):
        _sweep(axes, report, metric)
    found = {}  # of all panels: not every metric has a score of real images
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles))
    figure.legend(
        found.values(), found, loc="outside lower center", ncols=2 * len(names), fontsize=8
    )
    figure.savefig(file := io.BytesIO(), dpi=110, format="png", metadata=dict(text))
    paths.write(path, file.getvalue())


def sweep_panel(report: dict[str, Any], metric: str) -> str:
    """One metric of an evaluation's rows, over the setting with most values, as SVG.

    A line for each combination of the others; real images dashed, the best row ringed. There is no
    point for a number that is not there.
    """
    return _svg(f"sweep {metric}", lambda axes: _sweep(axes, report, metric))


def _sweep(axes: Any, report: dict[str, Any], metric: str) -> None:
    rows = report["rows"]
    settings = [k for k in rows[0] if k not in ("results", "seconds", "network_calls", "failed")]
    counts = {key: len({row[key] for row in rows}) for key in settings}
    numeric = [key for key in settings if isinstance(rows[0][key], (int, float))]
    along = max(settings, key=lambda key: (key in numeric) * (counts[key] > 1) + counts[key] / 1e6)
    others = [key for key in settings if counts[key] > 1 and key != along]
    values = sorted({row[along] for row in rows})
    place = dict(zip(values, values if along in numeric else range(len(values))))
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: place[row[along]]):
        name = ", ".join(f"{key} {row[key]}" for key in others)
        lines.setdefault(name, []).append(row)
    for name, found in lines.items():
        y = [_value(row["results"], metric) for row in found]
        axes.plot([place[row[along]] for row in found], y, "o-", label=name)
    if report["best"] is not None:
        best = rows[report["best"]]
        axes.plot(
            place[best[along]], _value(best["results"], metric), "o", markersize=14,
            fillstyle="none", color="black", clip_on=False,
            label=f"best by {next(iter(best['results']))}",
        )  # fmt: skip
    real = _value(report["real_images"]["results"], metric) if report["real_images"] else math.nan
    if math.isfinite(real):
        axes.axhline(real, linestyle="--", color="gray", label="score of real images")
    axes.set(xlabel=along.replace("_", " "), ylabel=metric)
    x = list(place.values())
    if len(x) <= 8 and min(np.diff(x), default=1) > 0.1 * (x[-1] - x[0]):
        axes.set_xticks(x, [str(value) for value in values])
    _room(axes, x)
    axes.grid(alpha=0.3)


def _value(results: Mapping[str, Any], metric: str) -> float:
    """A metric's number, NaN for one that is missing or not finite: matplotlib leaves it out."""
    value = results.get(metric, {}).get("value")
    return value if tables.is_finite(value) else math.nan


def _room(axes: Any, x: Sequence[float]) -> None:
    """Around a single value, on each axis, where there would be an axis of almost no length."""
    if x[0] == x[-1]:
        axes.set_xlim(x[0] - 1, x[0] + 1)
    low, high = axes.dataLim.intervaly
    if low == high:
        room = abs(low) / 2 or 1
        axes.set_ylim(low - room, high + room)


def curves(lines: Mapping[str, Line], xlabel: str, ylabel: str) -> str:
    """Lines with their names as SVG, sparse ones with markers; logarithmic if few are far above."""

    def draw(axes):
        from matplotlib.ticker import FixedLocator, MaxNLocator

        most = max(len(x) for x, _ in lines.values())
        for name, (x, y) in lines.items():
            marker = "o" if len(x) < 40 and (len(x) < most or most < 5) else ""
            label = name if len(lines) > 1 else ""
            axes.plot(x, y, marker=marker, linewidth=1.4, label=label)
        values = sorted(v for _, y in lines.values() for v in y if math.isfinite(v))
        if values and values[0] > 0 and values[-1] > 20 * values[len(values) // 2]:
            axes.set_yscale("log")
        axes.set(xlabel=xlabel, ylabel=ylabel)
        steps = sorted({v for x, _ in lines.values() for v in x})
        single = FixedLocator(steps) if len(steps) == 1 else None
        axes.xaxis.set_major_locator(single or MaxNLocator(integer=True, **STEPS))
        _room(axes, steps)
        axes.grid(alpha=0.3)

    return _svg(ylabel, draw)


def _svg(name: str, draw: Callable[[Any], None]) -> str:
    """A panel that `draw` fills, as an <svg> element for a page; the same panel, the same bytes.

    name: no other panel of the page has it, and so none has its ids.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = STYLE | {"svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        handles, labels = axes.get_legend_handles_labels()
        if labels:
            ncols = 2 if max(map(len, labels)) < 30 else 1
            figure.legend(handles, labels, loc="outside lower left", ncols=ncols, fontsize=8)
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return _inline(file.getvalue())


def _inline(text: str) -> str:
    """An SVG file as an element of an HTML page, in its colours, without namespaces' addresses."""
    root = ElementTree.fromstring(text)
    used = set(re.findall(r"#([\w-]+)", text))
    for defs in [child for child in root if child.tag.endswith("}defs")][:1]:
        root.remove(defs)  # its style sheet would be the page's
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        found = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        if found.get("id") not in used:
            found.pop("id", None)
        element.attrib.clear()
        element.attrib.update(found)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib["aria-hidden"] = "true"  # its figure says what it shows
    inline = re.sub(r" font-family: [^;\"]*;?", "", ElementTree.tostring(root, encoding="unicode"))
    return re.sub(
        r"#[0-9a-f]{6}", lambda m: f"var({COLOURS[m[0]]})" if m[0] in COLOURS else m[0], inline
    )
