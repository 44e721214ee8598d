"""Writes docs/performance.md: compilers' estimates of the training step, and measurements.

    pip install -e ".[plan,parity]"
    python tests/benchmarks/performance.py --results=FOLDER > docs/performance.md

Everything about TPUs and GPUs is compiled ahead of time by the real compilers, on this machine's
CPU. For TPUs the numbers are the compiler's own estimate of the cycles, including kernels and
communication that is not hidden; for GPUs they are a roofline. It takes an hour or two on two
cores. Plans are kept in the folder, and those already there are reused.
"""

import argparse
import dataclasses
import datetime
import hashlib
import importlib.metadata
import inspect
import json
import pathlib
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vitdiff_jax.experiment import config as config_lib  # noqa: E402
from vitdiff_jax.modes import plan  # noqa: E402 - needs the path above
from vitdiff_jax.runtime import chips  # noqa: E402 - needs the path above

FAST = {"parallel.zero1": True, "train.gradient_dtype": "bfloat16"}
ONE = {"train.ema": [0.9999]}  # average; the config has two
MODELS = {  # name -> (config, images on each chip, changes)
    "DiT-XL/2, 256 tokens": ("dit.py", 32, {}),
    "JiT-B/16, 256 px": ("imagenet.py", 32, ONE),
    "JiT-L/16, 256 px": ("imagenet.py", 32, ONE | {"model.size": "L"}),
}
DIT, JIT_B, _ = MODELS
CHOICES: dict[str, dict[str, Any]] = {
    "none": {},
    "model.attention=xla": {"model.attention": "xla"},
    "parallel.zero1=False": {"parallel.zero1": False},
    "parallel.zero1=False, parallel.fsdp=4": {"parallel.zero1": False, "parallel.fsdp": 4},
    "train.gradient_dtype=float32": {"train.gradient_dtype": "float32"},
    "model.remat=dots": {"model.remat": "dots"},
    "model.remat=full": {"model.remat": "full"},
    "model.remat=full, model.scan=True": {"model.remat": "full", "model.scan": True},
    "train.accumulate=2": {"train.accumulate": 2},
}


@dataclasses.dataclass(frozen=True)
class Plans:
    """Plans of configs of the project, kept in a folder."""

    folder: pathlib.Path

    def of(
        self, file: str, topology: str, each: int | None, changes: dict[str, Any], full=False
    ) -> dict[str, Any]:
        """With `each` images on a chip (None: the config's own batch)."""
        name = f"{file} {topology} {each} {json.dumps(changes, sort_keys=True)} {full}"
        kept = self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
        if not kept.exists():
            config = config_lib.load(str(ROOT / "configs" / file))
            where = chips.parse(topology)
            batch = {"train.batch": each * where.count} if each else {}
            config = plan.changed(config, batch | changes)
            found = plan.Planner(config, where, full, None).plan(config)
            self.folder.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(found | {"name": name}))
        return json.loads(kept.read_text())

    def model(self, name: str, topology="v5e:2x2", full=False, **changes: Any) -> dict[str, Any]:
        """One of MODELS at its fastest, with further changes."""
        file, each, own = MODELS[name]
        return self.of(file, topology, each, FAST | own | changes, full)


def row(*cells: Any) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def gib(found: dict[str, Any]) -> str:
    return f"{found['bytes_per_device']['total'] / chips.GIB:.1f}"


def mfu(found: dict[str, Any]) -> str:
    return f"{found['estimated_mfu']:.3f} ({found['estimated_mfu_with_communication']:.3f})"


def headline(plans: Plans):
    """Whole models on v5e:2x2; of the first two, all blocks are compiled.

    The models as published (AdamW, one float32 EMA, float32 master weights, biases), with
    `model.attention=auto`, `parallel.zero1=True` and `train.gradient_dtype=bfloat16`. MFU is of the
    computation alone, and in brackets with the communication that computation does not hide.
    """
    yield row("model", "images a chip", "MFU", "images/s a chip", "GiB of 16")
    yield row(*["---"] * 5)
    for name, (_, each, _) in MODELS.items():
        found = plans.model(name, full=name in (DIT, JIT_B))
        rate = f"{found['images_per_second'] / found['chips']:.0f}"
        yield row(name, each, mfu(found), rate, gib(found))


def links(plans: Plans):
    """Communication in a step of DiT-XL/2 on slices of several sizes, and how much of it is hidden.

    Ring algorithm at the bandwidth of the links' data sheet; 32 images per chip, few blocks.
    """
    yield row("chips", "MiB a chip sends", "ms", "of it hidden", "MFU")
    yield row(*["---"] * 5)
    for topology in ("v5e:2x2", "v5e:4x4", "v5e:16x16"):
        found = plans.model(DIT, topology)
        sent = found["collectives"]
        yield row(found["chips"], f"{sum(sent['bytes'].values()) / 2**20:.0f}",
                  f"{1e3 * sent['seconds']:.1f}", f"{1e3 * sent['hidden_seconds']:.1f}",
                  mfu(found))  # fmt: skip


def choices(plans: Plans):
    """One config value changed at a time: DiT-XL/2, 32 images per chip, v5e:2x2, few blocks."""
    yield row("changed", "MFU", "GiB")
    yield row(*["---"] * 3)
    for title, change in CHOICES.items():
        found = plans.model(DIT, **change)
        yield row(f"`{title}`", mfu(found), gib(found))


def accuracy(plans: Plans):
    """The extrapolation from few blocks compared with all blocks compiled, v5e:2x2."""
    yield row("model", "what", "extrapolated", "all blocks", "ratio")
    yield row(*["---"] * 5)
    for name in (DIT, JIT_B):
        few, whole = (plans.model(name, full=full) for full in (False, True))
        for what, of in {
            "seconds a step": lambda p: p["seconds_per_step"],
            "bytes a chip": lambda p: p["bytes_per_device"]["total"],
            "bytes sent": lambda p: sum(p["collectives"]["bytes"].values()),
        }.items():
            ratio = of(few) / of(whole)
            yield row(name, what, f"{of(few):.4g}", f"{of(whole):.4g}", f"{ratio:.3f}")


def machines(plans: Plans):
    """configs/imagenet.py as shipped: JiT-B/16, batch 1024, 200 epochs."""
    yield row("chips", "GiB of each", "ms a step", "images/s", "MFU", "hours", "how")
    yield row(*["---"] * 7)
    for topology in ("v5e:4x4", "v6e:4x4", "h100:8"):
        found = plans.of("imagenet.py", topology, None, {})
        memory = found["memory_per_device"] / chips.GIB
        yield row(topology, f"{gib(found)} of {memory:.0f}",
                  f"{1e3 * found['seconds_per_step']:.0f}", f"{found['images_per_second']:,.0f}",
                  mfu(found), f"{found['hours']:.1f}", found["estimate"])  # fmt: skip


def gpu(plans: Plans):
    """Measured on a GPU by `tests/benchmarks/accelerator.py`: all blocks, AdamW and one EMA.

    The lines are those of accelerator.txt in the folder of the plans, from a machine with a GPU.
    """
    kept = plans.folder / "accelerator.txt"
    lines = kept.read_text().splitlines() if kept.exists() else ["not yet run"]
    yield from (f"    {line}" for line in lines)


def cpu(_: Plans):
    """Measured on this CPU by `tests/benchmarks/train_step.py`: DiT-S, small configs, float32."""
    run = [sys.executable, str(ROOT / "tests/benchmarks/train_step.py"), "--rounds=5"]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    yield from (f"    {line}" for line in done.stdout.splitlines())


PARTS = {part.__name__: part for part in (headline, links, choices, accuracy, machines, gpu, cpu)}


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=pathlib.Path, required=True, help="folder of the plans")
    parser.add_argument("--part", action="append", choices=PARTS, help="one or more; all if none")
    arguments = parser.parse_args()
    versions = [f"{n} {importlib.metadata.version(n)}" for n in ("jax", "libtpu", "flax")]
    print("# Performance\n")
    print("Written by `tests/benchmarks/performance.py`, which says what the numbers mean.")
    print(f"{datetime.date.today()}, {', '.join(versions)}.")
    for name in arguments.part or PARTS:
        title, _, rest = inspect.getdoc(PARTS[name]).partition("\n")
        print(f"\n## {name.capitalize()}\n\n{title}\n{rest}\n")
        for line in PARTS[name](Plans(arguments.results)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
