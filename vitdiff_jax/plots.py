"""Plots of results: the only file that imports matplotlib."""

import io
from typing import Any

from etils import epath

from vitdiff_jax import paths


def sweep(path: epath.Path, report: dict[str, Any]) -> None:
    """One panel for each metric of an evaluation's rows, over the setting with most values.

    A line for each combination of the others; the floor dashed, the best row ringed.
    """
    from matplotlib.figure import Figure  # a second to import: only where something is plotted

    rows = report["rows"]
    settings = [k for k in rows[0] if k not in ("results", "seconds")]
    counts = {key: len({row[key] for row in rows}) for key in settings}
    numeric = [k for k in settings if isinstance(rows[0][k], (int, float))]
    along = max(numeric, key=lambda key: counts[key])
    others = [key for key in settings if counts[key] > 1 and key != along]
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = ", ".join(f"{key} {row[key]}" for key in others)
        lines.setdefault(name, []).append(row)
    names = list(rows[0]["results"])
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, metric in zip(panels, names):
        for name, found in lines.items():
            found = sorted(found, key=lambda row: row[along])
            values = [row["results"][metric]["value"] for row in found]
            axes.plot([row[along] for row in found], values, "o-", label=name)
        best = rows[report["best"]]
        axes.plot(
            best[along], best["results"][metric]["value"], "o", markersize=14, fillstyle="none",
            color="black", label=f"best by {names[0]}",
        )  # fmt: skip
        if report["floor"] and metric in report["floor"]["results"]:
            floor = report["floor"]["results"][metric]["value"]
            axes.axhline(floor, linestyle="--", color="gray", label="floor: real images")
        axes.set(xlabel=along, ylabel=metric)
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * len(names), fontsize=8)
    figure.savefig(file := io.BytesIO(), dpi=110, format="png")
    paths.write(path, file.getvalue())
