"""The page docs/performance.md: what the compilers say of the training step, and what is measured.

    pip install -e ".[plan]" && python tests/benchmarks/performance.py [--part choices] [--out FILE]

Everything about TPUs and GPUs is compiled ahead of time by the real compilers, on this machine's
CPU. For TPUs the numbers are the compiler's own estimate of the cycles, kernels and uncovered
messages included; for GPUs a roofline. Parts: headline (whole models, all blocks compiled), links
(what messages take on 4, 16 and 256 chips), choices (the effect of each config value, few blocks),
accuracy (few blocks extrapolated, beside all), plans (configs/imagenet.py on three machines).
"""

import argparse
import datetime
import importlib.metadata
import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vitdiff_jax import chips, plan  # noqa: E402 - needs the path above
from vitdiff_jax import config as config_lib  # noqa: E402

FAST = {"parallel.zero1": True, "train.gradient_dtype": "bfloat16", "model.remat": "none"}
MODELS = {  # name -> (config, images on each chip, changes)
    "DiT-XL/2, 256 tokens": ("dit.py", 32, {"model.remat": "none"}),
    "JiT-B/16, 256 px": ("imagenet.py", 32, {}),
    "JiT-L/16, 256 px": ("imagenet.py", 16, {"model.size": "L"}),
}
CHOICES: dict[str, dict[str, Any]] = {
    "as in the table above": {},
    "XLA's attention": {"model.attention": "xla"},
    "state whole on every chip (no ZeRO-1)": {"parallel.zero1": False},
    "FSDP over all chips": {"parallel.zero1": False, "parallel.fsdp": 4},
    "gradients in float32": {"train.gradient_dtype": "float32"},
    "remat dots": {"model.remat": "dots"},
    "remat full": {"model.remat": "full"},
    "blocks scanned": {"model.scan": True},
    "two parts of a batch": {"train.accumulate": 2},
    "pmap": {"parallel.zero1": False, "parallel.compiler": "pmap"},
}


def planned(file: str, topology: str, each: int | None, changes: dict[str, Any], *, full=False):
    """The plan of a config of the project with `each` images on a chip (None: its own batch)."""
    config = config_lib.load(str(ROOT / "configs" / file))
    where = chips.parse(topology)
    if each:
        changes = {"train.batch": each * where.count, **changes}
    config = plan.changed(config, changes)
    return plan.Planner(config, where, full, None).plan(config)


def row(*cells: Any) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def gib(found: dict[str, Any]) -> str:
    return f"{found['bytes_per_device']['total'] / chips.GIB:.1f}"


def headline():
    """Whole models on v5e:2x2, all of their blocks compiled."""
    yield row("model, v5e:2x2", "images a chip", "MFU", "images/s a chip", "GiB", "messages, ms")
    yield row(*["---"] * 6)
    for name, (file, each, changes) in MODELS.items():
        found = planned(file, "v5e:2x2", each, FAST | changes, full=True)
        sent = found["collectives"]
        yield row(
            name,
            each,
            f"{found['estimated_mfu']:.3f}",
            f"{found['images_per_second'] / 4:.0f}",
            gib(found),
            f"{1e3 * sent['seconds']:.1f}, {1e3 * sent['hidden_seconds']:.1f} hidden",
        )


def links():
    """Messages of a step on slices of several sizes."""
    yield row("model", "chips", "MiB a chip sends", "ms", "of it hidden", "MFU")
    yield row(*["---"] * 6)
    for name, (file, each, changes) in list(MODELS.items())[:2]:
        for topology in ("v5e:2x2", "v5e:4x4", "v5e:16x16"):
            found = planned(file, topology, each, FAST | changes)
            sent = found["collectives"]
            yield row(
                name,
                found["chips"],
                f"{sum(sent['bytes'].values()) / 2**20:.0f}",
                f"{1e3 * sent['seconds']:.1f}",
                f"{1e3 * sent['hidden_seconds']:.1f}",
                f"{found['estimated_mfu']:.3f}",
            )


def choices():
    """Each config value changed alone, on v5e:2x2."""
    yield row("changed alone", *[f"{name}: MFU, GiB" for name in list(MODELS)[:2]])
    yield row(*["---"] * 3)
    for title, change in CHOICES.items():
        cells = []
        for file, each, changes in list(MODELS.values())[:2]:
            found = planned(file, "v5e:2x2", each, FAST | changes | change)
            cells.append(f"{found['estimated_mfu']:.3f}, {gib(found)}")
        yield row(title, *cells)


def accuracy():
    """Few blocks, extrapolated, beside all of them."""
    yield row("model, v5e:2x2", "what", "extrapolated", "all blocks", "ratio")
    yield row(*["---"] * 5)
    for name, (file, each, changes) in list(MODELS.items())[:2]:
        few, whole = (planned(file, "v5e:2x2", each, FAST | changes, full=f) for f in (False, True))
        for what, of in {
            "seconds a step": lambda p: p["seconds_per_step"],
            "bytes a chip": lambda p: p["bytes_per_device"]["total"],
            "bytes sent": lambda p: sum(p["collectives"]["bytes"].values()),
        }.items():
            yield row(
                name, what, f"{of(few):.4g}", f"{of(whole):.4g}", f"{of(few) / of(whole):.3f}"
            )


def plans():
    """configs/imagenet.py as shipped."""
    yield row("chips", "GiB of each", "ms a step", "images/s", "MFU", "hours", "how")
    yield row(*["---"] * 7)
    for topology in ("v5e:4x4", "v6e:4x4", "h100:8"):
        found = planned("imagenet.py", topology, None, {})
        memory = found["memory_per_device"] / chips.GIB
        yield row(
            topology,
            f"{gib(found)} of {memory:.0f}",
            f"{1e3 * found['seconds_per_step']:.0f}",
            f"{found['images_per_second']:,.0f}",
            f"{found['estimated_mfu']:.2f}",
            f"{found['hours']:.0f}",
            found["estimate"],
        )


PARTS = {part.__name__: part for part in (headline, links, choices, accuracy, plans)}


def main() -> None:
    """Run the parts that are asked for, and print or write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="one or more; all if none")
    names = parser.parse_args().part or list(PARTS)
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("jax", "libtpu"))
    print(f"{datetime.date.today()}, {versions}\n")
    for name in names:
        print(f"### {name}: {PARTS[name].__doc__}\n")
        for line in PARTS[name]():
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
