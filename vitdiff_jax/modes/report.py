"""`--mode=report`: what a workdir holds as one page to look at, report.html.

Every run leaves one at its end. The page is made from the workdir's files alone: samples, sampling
trajectories, curves, evaluations, restorations, the plan, the config, versions; a section whose
files are missing is left out. A broken file is named in its place, and in the log.
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference.evaluator import versions
from vitdiff_jax.reporting import data, gallery, page, plots, restorations
from vitdiff_jax.reporting.page import Facts, Part, Plot, Problem, Section, Table
from vitdiff_jax.runtime import logs, paths, tables

POINTS = 400
"""Of a curve; where a run has more, each is the mean of its share."""
RESULTS = {"value": "EMA {}", "low": "real images, low", "high": "real images, high"}
"""Results of a metric that are drawn -> names of their lines."""

Json = dict[str, Any]


def main(config: ConfigDict | None, workdir: epath.Path) -> None:
    """Write report.html of a workdir, as every run does at its end; no accelerator is used."""
    if jax.process_index() == 0:
        logs.say(f"report in {write(workdir)}")


def at_end(workdir: epath.Path) -> None:
    """The report of a run that is done: what goes wrong with it does not make the run fail."""
    if jax.process_index() == 0:
        try:
            logs.say(f"report in {write(workdir)}")
        except Exception as error:
            logs.say(f"warning: no report: {type(error).__name__}: {error}")


def write(workdir: str | os.PathLike[str]) -> epath.Path:
    """Write the report, whole or not at all; its path. ConfigError where nothing is to be shown."""
    workdir = epath.Path(workdir)
    sections = []
    for title, make in SECTIONS.items():
        parts = list(page.careful(title, make(workdir)))
        sections += [Section(title, parts)] if parts else []
    if not sections:
        raise ConfigError(
            f"{workdir}: nothing to report, none of the files that a run leaves is here; is this"
            " its workdir?"
        )
    for part in (part for section in sections for part in section.parts):
        if isinstance(part, Problem):
            logs.say(f"warning: report: {part.text}")
    this = Table("Versions of what wrote the files", *_versions(workdir))
    sections.append(Section("Versions", [this]))
    text = page.render(workdir.name or workdir.resolve().name, *_head(workdir), sections)
    path = workdir / "report.html"
    paths.write(path, text.encode())
    return path


def _at(path: epath.Path, *keys: Any) -> Any:
    """A value of a JSON file; None where it is not there: what is broken, its own section says."""
    try:
        found = tables.read(path)
        for key in keys:
            found = found[key]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found


def _head(workdir: epath.Path) -> tuple[str, Facts]:
    """A sentence on model and data, and the numbers that matter most."""
    config, evaluation = workdir / "config.json", workdir / "evaluation.json"
    lines, _ = _metrics(workdir)
    last, steps = lines[-1]["step"] if lines else None, _at(config, "train", "steps")
    facts = []
    if last is not None:
        whole = f" of {steps:,}" if isinstance(steps, int) and steps != last else ""
        facts.append(("steps", f"{last:,}{whole}"))
    for name, key in (("training loss", "loss"), ("held-out loss", "heldout/loss")):
        _, values = _series(lines, key)
        facts += [(name, f"{values[-1]:.4f}")] if values else []
    best = _at(evaluation, "rows", _at(evaluation, "best"), "results")
    for name in list(best)[:2] if isinstance(best, dict) else ():
        value = _at(evaluation, "rows", _at(evaluation, "best"), "results", name, "value")
        facts += [(name, f"{value:.4f}")] if tables.is_finite(value) else []
    model, data = _at(config, "model", "name"), _data(workdir)
    lead = f"Model {model}, trained on {data}" if model and data else "A run of vitdiff_jax"
    return lead, Facts(facts)


def _data(workdir: epath.Path) -> str:
    """The data in words: "stamps: 3 classes, 241 images of 64x64 pixels"; "" where nothing says."""
    name, path = (_at(workdir / "config.json", "data", key) for key in ("name", "path"))
    if isinstance(path, str) and path:
        name = pathlib.PurePath(path).name.removesuffix(".zip")
    about = {key: _at(workdir / "data.json", key) for key in ("classes", "attributes", "images")}
    counts = [f"{n:,} {key}" for key, n in about.items() if isinstance(n, int)]
    height, width = (_at(workdir / "data.json", "shape", i) for i in (0, 1))
    size = f" of {width}x{height} pixels" if height and width else ""
    return f"{name}: {', '.join(counts)}{size}" if name and counts else name or ""


def _metrics(workdir: epath.Path) -> tuple[list[Json], int]:
    """The lines of metrics.jsonl by step, and how many cannot be read; a last one may be half."""
    path = workdir / "metrics.jsonl"
    found, bad = [], 0
    text = path.read_bytes().decode(errors="replace") if path.exists() else ""
    for line in text.splitlines(True):
        try:
            values = json.loads(line)
            numbers = {key: v for key, v in values.items() if tables.is_finite(v)}
            found.append(numbers | {"step": int(values["step"])})
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            bad += line.endswith("\n")
    return sorted(found, key=lambda values: values["step"]), bad


def _series(lines: Sequence[Json], key: str) -> plots.Line:
    """Steps and values of a key, at most `POINTS`."""
    found = [(line["step"], float(line[key])) for line in lines if key in line]
    shares = [part for part in np.array_split(np.array(found), POINTS) if len(part)]
    x, y = np.array([part.mean(0) for part in shares]).T if shares else ((), ())
    return [float(v) for v in x], [float(v) for v in y]


def _curves(workdir: epath.Path) -> Iterator[Part]:
    """Losses, gradients, held-out losses by noise level, and evaluations during training."""
    lines, bad = _metrics(workdir)
    if bad:
        yield Problem(f"metrics.jsonl: {bad} lines cannot be read")
    levels = sorted({k for line in lines for k in line if k.startswith("heldout/t=")})
    panels = {
        "loss": {"training": "loss", "held out": "heldout/loss"},
        "gradient norm": {"gradient": "grad_norm"},
        "held-out loss by noise level": {k.removeprefix("heldout/"): k for k in levels},
        "learning rate": {"rate": "learning_rate"},
    }
    keys = sorted({k for line in lines for k in line if "/ema" in k})
    for of, name in RESULTS.items():
        for key in (key for key in keys if key.endswith(f"/{of}")):
            metric, _, ema = key.removesuffix(f"/{of}").rpartition("/ema")
            panels.setdefault(metric, {})[name.format(ema)] = key
    for name, keys in panels.items():
        found = {label: _series(lines, key) for label, key in keys.items()}
        found = {label: line for label, line in found.items() if line[0]}
        if found:
            yield from page.careful(f"metrics.jsonl, {name}", _curve(name, found))


def _curve(name: str, lines: dict[str, plots.Line]) -> Iterator[Part]:
    ends = {label: {x[0]: y[0], x[-1]: y[-1]} for label, (x, y) in lines.items()}
    words = "; ".join(
        f"{label} {', '.join(f'{y:.3g} at step {x:,.0f}' for x, y in points.items())}"
        for label, points in ends.items()
    )
    title = f"{name[0].upper()}{name[1:]}"
    now = ", ".join(f"{label} {y[-1]:#.3g}" for label, (_, y) in lines.items())
    caption = f"{title} at the end: {now}" if len(ends) == 2 else title
    yield Plot(plots.curves(lines, "step", name), f"{title}: {words}.", caption)


def _evaluation(workdir: epath.Path) -> Iterator[Part]:
    """A panel for each metric of a sweep, all numbers, and reasons to doubt them."""
    if report := tables.read(workdir / "evaluation.json"):
        rows, best, found = report["rows"], report["best"], report["real_images"]
        if len(rows) > 1:
            for metric in dict.fromkeys(name for row in rows for name in row["results"]):
                values = [row["results"].get(metric, {}).get("value") for row in rows]
                known = [value for value in values if tables.is_finite(value)]
                ends = f"{min(known):.4g} to {max(known):.4g}" if known else "no number"
                missing = f", none of {len(rows) - len(known)}" if len(known) < len(rows) else ""
                words = f"{metric} of {len(rows)} sampling settings: {ends}{missing}."
                yield Plot(plots.sweep_panel(report, metric), words, metric)
        real = (found["of"], found["results"]) if found else None
        head, *cells = tables.of_evaluation(rows, real, best)
        about = f"{report['images']:,} samples{' each' if len(rows) > 1 else ''}."
        about += f" The last row: score of real images ({found['of']})." if found else ""
        yield Table(about, head, cells, mark=best if len(rows) > 1 else None)
        if doubts := [["warning", line] for line in report.get("warnings", ())]:
            yield Table("What to look at", ("", ""), doubts)


def _plan(workdir: epath.Path) -> Iterator[Part]:
    if plan := tables.read(workdir / "plan.json"):
        yield Facts(tables.of_plan(plan))
        costly = [(f"{100 * o['share']:.1f} %", o["name"]) for o in plan["operations"]]
        yield Table("The most expensive operations", ("share", "operation"), costly, folded=True)


def _config(workdir: epath.Path) -> Iterator[Part]:
    if config := tables.read(workdir / "config.json"):
        rows = list(_leaves(config))
        yield Table(f"All {len(rows)} values", ("key", "value"), rows, folded=True)


def _leaves(tree: Json, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value as JSON)."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False)


def _versions(workdir: epath.Path) -> tuple[list[str], list[list[str]]]:
    """A head and rows: libraries by the files that say with which they were made."""
    known = {"this report": versions()}
    for name in ("evaluation.json", "restoration.json"):
        found = _at(workdir / name, "versions")
        known |= {name: found} if isinstance(found, dict) else {}
    names = list(dict.fromkeys(name for found in known.values() for name in found))
    return ["", *known], [[n, *(str(found.get(n, "")) for found in known.values())] for n in names]


SECTIONS: dict[str, Callable[[epath.Path], Iterator[Part]]] = {
    "Samples": gallery.samples,
    "Curves": _curves,
    "Data": data.data,
    "Evaluation": _evaluation,
    "Restoration": restorations.restorations,
    "Plan": _plan,
    "Config": _config,
}
