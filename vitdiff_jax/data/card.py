"""The data card: in a few lines what was understood of the data, and what looks suspicious.

Its facts are kept as data.json in the workdir, for the report and for the next run, which says
whether the data have changed since.
"""

import collections
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from vitdiff_jax.data import listing
from vitdiff_jax.data.index import Entry
from vitdiff_jax.data.listing import Listing, shown, some
from vitdiff_jax.data.pipeline import Dataset, InMemory
from vitdiff_jax.data.text import Matched, composed
from vitdiff_jax.runtime import tables

FEW, BROKEN = 3, 5
"""Names in a line for each reason; broken images in a line, each with its reason."""
SPLITS = {
    "train", "training", "test", "testing", "val", "valid", "validation", "eval", "dev", "holdout",
    "heldout", "images", "imgs", "masks", "mask", "labels", "annotations", "trainval", "unlabeled",
}  # fmt: skip
"""Names of folders that part a data set in another way than by class."""


def facts(dataset: Dataset) -> dict[str, Any]:
    """What is known of a data set, for data.json: counts, shape, mark, and its card."""
    found: dict[str, Any] = {"images": len(dataset.train), "heldout": len(dataset.heldout)}
    found |= {"shape": list(dataset.shape)}
    for key, condition in (("classes", "label"), ("attributes", "attributes")):
        found[key] = len(dataset.conditions.get(condition, ())) or None
    known = dict(dataset.card)
    parts = [p for p in (dataset.train, dataset.heldout) if isinstance(p, InMemory)]
    if dataset.classes and len(parts) == 2:
        counts = [np.bincount(part.labels, minlength=dataset.classes) for part in parts]
        pairs = np.stack(counts, 1).tolist()
        known["class_counts"] = dict(zip(map(str, dataset.conditions["label"]), pairs))
    return found | known | ({"mark": dataset.mark} if dataset.mark else {})


def of_folder(
    found: Listing, entries: Mapping[str, Entry], broken: Mapping[str, str]
) -> dict[str, Any]:
    """The card of a folder or zip file, without what depends on classes and captions."""
    card: dict[str, Any] = {}
    sized = [entry for entry in entries.values() if entry.width and entry.height]
    if sized:
        sizes = {(entry.width or 0, entry.height or 0) for entry in sized}
        sizes = sorted(sizes, key=lambda size: size[0] * size[1])
        grey = sum(bool(entry.grey) for entry in sized)
        card |= {"sizes": [sizes[0], sizes[-1]], "colour": len(sized) - grey, "grey": grey}
    if found.left_out:
        card["left_out"] = {
            reason: {"count": len(names), "names": list(map(shown, names[:FEW]))}
            for reason, names in found.left_out.items()
        }
    if broken:
        card["broken"] = {shown(name): reason for name, reason in list(broken.items())[:100]}
        card["broken_count"] = len(broken)
    return card


def of_classes(names: tuple[str, ...], train: Iterable[int], heldout: Iterable[int]) -> dict:
    """{class: [training, held-out images]}, by the labels of both."""
    counts = [np.bincount(list(labels), minlength=len(names)) for labels in (train, heldout)]
    return dict(zip(map(shown, names), np.stack(counts, 1).tolist()))


def of_captions(matched: Matched, names: list[str], length: int) -> dict[str, Any]:
    """How many images have captions, which names match nothing, and what is cut at length bytes."""
    texts = matched.texts.values()
    without = [name for name in names if name not in matched.texts]
    return {
        "with": len(names) - len(without), "without": len(without), "lost": len(matched.lost),
        "loosely": len(matched.loosely), "names_without": list(map(shown, without[:FEW])),
        "names_lost": list(map(shown, matched.lost[:FEW])),
        "cut": sum(len(text.encode(errors="replace")) > length for of in texts for text in of),
    }  # fmt: skip


def warnings_of_listing(found: Listing, below: str) -> list[str]:
    """What is suspicious about the files of a folder."""
    lines = []
    if below:
        lines.append(
            f"the only folder {shown(below)} is taken as the data: its folders are classes"
        )
    if found.by_content:
        lines.append(
            f"{_files(len(found.by_content))} whose suffix says nothing read as images by content:"
            f" {some(found.by_content)}"
        )
    for suffix, names in found.unread.items():
        lines.append(
            f"{_files(len(names))} left out: {suffix}, a format that is not read; convert to JPEG"
            f" or PNG: {some(names)}"
        )
    return lines


def warnings_of_files(
    entries: Mapping[str, Entry], train: Iterable[str], heldout: Iterable[str],
    labels: Mapping[str, int | None],
) -> list[str]:  # fmt: skip
    """What is suspicious about the contents of images: several frames, CMYK, exact copies."""
    lines = []
    if several := [name for name, entry in entries.items() if entry.count > 1]:
        lines.append(
            f"{_files(len(several))} of several frames or pages, the first is read: {some(several)}"
        )
    if inks := [name for name, entry in entries.items() if entry.inks]:
        lines.append(f"{_files(len(inks))} in CMYK, converted to RGB as ideal inks: {some(inks)}")
    same = collections.defaultdict(list)
    for name, entry in entries.items():
        same[entry.mark].append(name)
    if copies := [names for names in same.values() if len(names) > 1]:
        held, trained = set(heldout), set(train)
        both = sum(not (held.isdisjoint(c) or trained.isdisjoint(c)) for c in copies)
        mixed = sum(len({labels[name] for name in names}) > 1 for names in copies)
        text = f"{_files(sum(map(len, copies)) - len(copies))} that copy another, such as"
        text += f" {' and '.join(map(shown, copies[0][:2]))}"
        text += f"; {both:,} held out and trained on" if both else ""
        text += f"; {mixed:,} in several classes" if mixed else ""
        lines.append(text)
    return lines


def warnings_of_classes(
    names: tuple[str, ...], counts: Mapping[str, list[int]], folders: Iterable[str]
) -> list[str]:
    """What is suspicious about the classes. folders: all, with images or without."""
    lines, looks = [], [name for name in names if name.lower() in SPLITS]
    if len(looks) > 1:
        lines.append(
            f"the classes {some(looks)} are named like parts of a data set; if they are, give one"
            " of these folders as config.data.path, or use config.data.classes=False"
        )
    plain = collections.defaultdict(list)
    for name in names:
        plain[" ".join(re.split(r"[\s_-]+", composed(name).casefold().strip()))].append(name)
    for alike in plain.values():
        if len(alike) > 1:
            lines.append(f"classes of nearly the same name: {some(alike)}")
    if no_class := sorted(set(folders) - set(names)):
        lines.append(f"no class, since without an image that can be read: {some(no_class)}")
    if empty := [name for name, (train, _) in counts.items() if not train]:
        lines.append(f"classes without a training image: {some(empty)}")
    return lines


def warning_of_captions(card: Mapping[str, Any], file: str) -> list[str]:
    """What is suspicious about captions, see `of_captions`."""
    parts, count = [], card["with"] + card["without"]
    if n := card["without"]:
        names = some(card["names_without"], 3) + (", ..." if n > FEW else "")
        parts.append(
            f"{n:,} of {count:,} images {'has' if n == 1 else 'have'} no caption ({names})"
        )
    if n := card["lost"]:
        names = some(card["names_lost"], 3) + (", ..." if n > FEW else "")
        parts.append(f"{n:,} {'line names' if n == 1 else 'lines name'} no image ({names})")
    if n := card["loosely"]:
        parts.append(f"{n:,} matched without regard to case, suffix or folder")
    if n := card["cut"]:
        parts.append(f"{n:,} longer than config.data.length bytes and cut there")
    return [f"{file}: {', '.join(parts)}"] if parts else []


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"


def lines(dataset: Dataset) -> list[str]:
    """The card on the terminal: classes and sizes, what was left out, and warnings."""
    card, parts, found = dataset.card, [], []
    if counts := card.get("class_counts"):
        parts.append(f"classes {_classes(counts)}")
    if sizes := card.get("sizes"):
        ends = list(dict.fromkeys(f"{width}x{height}" for width, height in sizes))
        parts.append(f"{' to '.join(ends)} pixels")
        kinds = {"in colour": card["colour"], "in grey": card["grey"]}
        parts.append(" and ".join(f"{n:,} {kind}" for kind, n in kinds.items() if n))
    if parts:
        found.append(f"images: {'; '.join(parts)}")
    left = [
        f"{about['count']:,} {reason} ({_names(about)})"
        for reason, about in card.get("left_out", {}).items()
        if reason not in listing.UNREAD  # a warning says it
    ]
    if broken := card.get("broken"):
        named = "; ".join(f"{name}: {reason}" for name, reason in list(broken.items())[:BROKEN])
        more = "; ... in data.json" if card["broken_count"] > BROKEN else ""
        left.insert(0, f"{card['broken_count']:,} broken ({named}{more})")
    if left:
        found.append(f"left out: {', '.join(left)}")
    return found + [f"warning: data: {line}" for line in card.get("warnings", ())]


def _names(about: Mapping[str, Any]) -> str:
    return ", ".join(about["names"]) + (", ..." if about["count"] > len(about["names"]) else "")


def _classes(counts: Mapping[str, list[int]]) -> str:
    """Numbers of training images: of all classes, or of the largest and smallest few."""
    order = sorted(counts, key=lambda name: -counts[name][0])
    texts = [f"{name} {counts[name][0]:,}" for name in order]
    if len(texts) <= 2 * FEW:
        return ", ".join(texts)
    return ", ".join([*texts[:FEW], "...", *texts[-FEW:]])


def changed(workdir: epath.Path, dataset: Dataset, trained: str | None = None) -> list[str]:
    """A line if the workdir was trained on other data than these.

    trained: the mark of those, from a checkpoint; None: that in data.json, which may be missing.
    """
    try:
        before = tables.read(workdir / "data.json")
    except (OSError, ValueError):
        before = {}
    known = before.get("mark")
    trained = trained or known
    if not trained or dataset.mark in ("", trained):
        return []
    counts = f"{before.get('images')} images and {before.get('heldout')} held out"
    which = f", which were {counts}" if trained == known else ""
    return [
        f"warning: data: not what this workdir was trained on so far{which}: the files have changed"
    ]


def of_inputs(found: Listing, path: Any) -> list[str]:
    """What was found in a folder of inputs, and left out."""
    left = listing.summary(found.left_out)
    count = len(found.found)
    return [
        f"{count:,} image{'s' * (count != 1)} in {path}" + (f"; left out: {left}" if left else ""),
        *(f"warning: {line}" for line in warnings_of_listing(found, "")),
    ]
