"""Results for a person, as tables of text, and for programs, as JSON."""

import json
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

Results = dict[str, dict[str, float]]
"""The numbers of each metric, "value" first."""


def aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of cells as lines of text with straight columns."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        yield "  ".join(cell.rjust(width) for cell, width in zip(line, widths))


def table(
    found: list[dict[str, Any]], floor: tuple[str, Results] | None, best: int
) -> Iterator[str]:
    """A head, a line a row: the settings that differ, all numbers, the best marked; the floor."""
    settings = [k for k in found[0] if k not in ("results", "seconds")]
    differ = [k for k in settings if len({row[k] for row in found}) > 1]
    names = list(_numbers(found[0]["results"]))
    lines = [["", *differ, *names]]
    for i, row in enumerate(found):
        mark = "best" if i == best and len(found) > 1 else ""
        values = [str(row[key]) for key in differ]
        lines.append([mark, *values, *_numbers(row["results"]).values()])
    if floor is not None:
        known = _numbers(floor[1])
        lines.append(["floor", *[""] * len(differ), *(known.get(name, "") for name in names)])
    yield from aligned(lines)
    if floor is not None:
        yield f"floor: {floor[0]}"


def _numbers(results: Results) -> dict[str, str]:
    """All numbers of some metrics, {what: number}."""
    return {
        name if key == "value" else f"{name} {key}": f"{value:.4f}"
        for name, values in results.items()
        for key, value in values.items()
    }


def write(path: pathlib.Path, report: dict[str, Any]) -> None:
    """As JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(_finite(report), indent=2, allow_nan=False) + "\n")
    os.replace(partial, path)


def _finite(report: Any) -> Any:
    """The same with None for what is not finite, which JSON cannot say."""
    if isinstance(report, dict):
        return {key: _finite(value) for key, value in report.items()}
    if isinstance(report, (list, tuple)):
        return [_finite(value) for value in report]
    return None if isinstance(report, float) and not math.isfinite(report) else report
