"""The data of a run in its report: the card that training leaves as data.json."""

from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from vitdiff_jax.reporting.page import Facts, Part, Table
from vitdiff_jax.runtime import tables

MOST = 50
"""Classes in the table, the largest ones."""


def data(workdir: epath.Path) -> Iterator[Part]:
    """What data.json says beside the number of images, shown if it says more."""
    card = tables.read(workdir / "data.json")
    if facts := [(name, text) for name, text in _facts(card).items() if text]:
        yield Facts(facts)
    if counts := card.get("class_counts"):
        order = sorted(counts, key=lambda name: -counts[name][0])
        caption = (
            f"The largest {MOST} of {len(order):,} classes" if len(order) > MOST else "Classes"
        )
        rows = [[name, *(f"{n:,}" for n in counts[name])] for name in order[:MOST]]
        yield Table(caption, ("class", "training images", "held out"), rows, folded=True)
    rows = [["warning", line] for line in card.get("warnings", ())]
    rows += [[f"broken: {name}", reason] for name, reason in card.get("broken", {}).items()]
    if rows:
        yield Table("What to look at", ("", ""), rows)


def _facts(card: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    if sizes := card.get("sizes"):
        ends = dict.fromkeys(f"{width}x{height}" for width, height in sizes)
        found["sizes in pixels"] = " to ".join(ends)
        found["in colour, in grey"] = f"{card['colour']:,}, {card['grey']:,}"
    if captions := card.get("captions"):
        found["with captions"] = f"{captions['with']:,}"
        found["without captions"] = f"{captions['without']:,}" if captions["without"] else ""
    for reason, about in card.get("left_out", {}).items():
        names = ", ".join(about["names"]) + (
            ", ..." if about["count"] > len(about["names"]) else ""
        )
        found[f"left out: {reason}"] = f"{about['count']:,} ({names})"
    return found
