"""Results for a person, as tables of text, and for programs, as JSON."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from vitdiff_jax.runtime import chips, paths

Results = dict[str, dict[str, float]]
"""The numbers of each metric, "value" first."""
NONE = "-"
"""In a table, for a number that is not there."""


def aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of cells as lines of text with straight columns."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        yield "  ".join(cell.rjust(width) for cell, width in zip(line, widths))


def table(
    found: list[dict[str, Any]], real: tuple[str, Results] | None, best: int | None
) -> Iterator[str]:
    """`of_evaluation` as lines of text, and what the real images were."""
    yield from aligned(of_evaluation(found, real, best))
    if real is not None:
        yield f"real images: {real[0]}"


def of_evaluation(
    found: list[dict[str, Any]], real: tuple[str, Results] | None, best: int | None
) -> list[list[str]]:
    """A head, a row each: the settings that differ, all numbers, the best marked; real images."""
    settings = [k for k in found[0] if k not in ("results", "seconds", "failed")]
    differ = [k for k in settings if len({str(row.get(k)) for row in found}) > 1]
    numbers = [_numbers(row["results"]) for row in found]
    names = list(dict.fromkeys(name for of_row in numbers for name in of_row))
    lines = [["", *differ, *names]]
    for i, (row, known) in enumerate(zip(found, numbers)):
        mark = "best" if i == best and len(found) > 1 else ""
        values = [str(row.get(key, NONE)) for key in differ]
        lines.append([mark, *values, *(known.get(name, NONE) for name in names)])
    if real is not None:
        known = _numbers(real[1])
        lines.append(["real images", *[""] * len(differ), *(known.get(name, "") for name in names)])
    return lines


def _numbers(results: Results) -> dict[str, str]:
    """All numbers of some metrics, {what: number}."""
    return {
        name if key == "value" else f"{name} {key}": number(value)
        for name, values in results.items()
        for key, value in values.items()
    }


def number(value: Any, form: str = ".4f") -> str:
    """A number as text; a dash for one that is missing or not finite."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:{form}}" if is_finite(value) else NONE


def is_finite(value: Any) -> bool:
    """Whether a result is a finite number; JSON has None for those that are not."""
    return isinstance(value, (int, float, np.number)) and math.isfinite(value)


def of_restoration(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A head, a row each; every metric's mean with its 95 % confidence interval."""
    names = list(dict.fromkeys(name for row in rows for name in row["results"]))
    lines = [["task", "method", *names, "seconds", "network calls"]]
    for row in rows:
        values = [_interval(row["results"].get(name, {})) for name in names]
        costs = [str(row.get(key, "")) for key in ("seconds", "network_calls")]
        lines.append([row["task"], row["method"], *values, *costs])
    return lines


def _interval(found: Mapping[str, Any]) -> str:
    """A mean with its 95 % confidence interval, and how many images it leaves out as perfect."""
    value, error = found.get("value"), found.get("standard_error")
    text = number(value, ".3f")
    if value is not None and is_finite(value) and error is not None and is_finite(error):
        text += f" ± {1.96 * error:.3f}"
    return f"{text} ({found['perfect']:,} perfect)" if found.get("perfect") else text


def of_plan(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a plan says, by name."""
    size = {name: value / chips.GIB for name, value in plan["bytes_per_device"].items()}
    memory, collectives = plan["memory_per_device"] / chips.GIB, plan["collectives"]
    parts = ", ".join(f"{name} {size[name]:.2f}" for name in size if name != "total")
    flops, of_optimizer = plan["flops_per_image"] / 1e9, plan.get("optimizer_flops", 0) / 1e9
    update = f", {of_optimizer:.3g} per optimizer update" if of_optimizer else ""
    return [
        ("chips", f"{plan['topology']}, {plan['chips']} devices; step {plan['how']}"),
        ("parameters", f"{plan['parameters']:,}; {flops:.1f} GFLOP per image{update}"),
        ("memory", f"{size['total']:.2f} of {memory:.0f} GiB per device: {parts}"),
        ("fits", "yes" if plan["fits"] else "NO: --search looks for a layout that does"),
        ("step time", f"{plan['seconds_per_step'] * 1e3:.1f} ms for {plan['batch']} images"
                      f" ({plan['images_per_second']:,.0f} images/s); {plan['estimate']}"),
        ("estimated MFU", f"{plan['estimated_mfu']:.3f} of the bf16 peak;"
                          f" {plan['estimated_mfu_with_communication']:.3f} with communication"),
        ("communication", f"{sum(collectives['bytes'].values()) / 2**20:.0f} MiB per device,"
                          f" {collectives['seconds'] * 1e3:.1f} ms on the links,"
                          f" {collectives['hidden_seconds'] * 1e3:.1f} ms of it overlapped"),
        ("whole run", f"{plan['steps']:,} steps: {plan['hours']:.1f} hours,"
                      f" {plan['chip_hours']:,.0f} chip hours"
                      + ("" if plan["price"] is None else f", costs {plan['price']:,.0f}")),
    ]  # fmt: skip


def write(path: epath.Path, report: dict[str, Any]) -> None:
    """As JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(finite(report), indent=2, allow_nan=False) + "\n"
    paths.write(path, text.encode())


def read(path: epath.Path) -> dict[str, Any]:
    """A JSON file's object; {} where there is no file. ValueError names the file."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path.name}: holds no object")
    return found


def finite(report: Any) -> Any:
    """The same as JSON can say it: None for what is not finite, NumPy's numbers as Python's."""
    if isinstance(report, Mapping):
        return {key: finite(value) for key, value in report.items()}
    if isinstance(report, (list, tuple)):
        return [finite(value) for value in report]
    report = report.item() if isinstance(report, np.generic) else report
    return None if isinstance(report, float) and not math.isfinite(report) else report
