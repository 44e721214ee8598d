"""ViT, DiT, U-ViT and a convolutional U-Net at equal training time and about equal parameters.

    python tests/benchmarks/denoisers.py --config=configs/digits.py --workdir=runs/denoisers
        --minutes=2 [--rates=3e-3,1e-3] [--config.train.batch=32]

All but the network is the config's: data, process, loss, batch, average, sampler, metrics. Each
network first trains a little to find its steps per second, then anew for as many steps as that
makes in the time, at each learning rate, and is measured as `--mode=evaluate` does. Its best row
counts: one rate for all would favour the network that it was chosen for. {workdir}/denoisers.json
has all.

Run it on one core (`taskset -c 0`) with nothing beside it on that core: the time is only equal on a
machine that is equally fast throughout.
"""

import argparse
import copy
import json
import os
import pathlib
import statistics
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
import jax

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vitdiff_jax.experiment import config as config_lib  # noqa: E402 - needs the path above
from vitdiff_jax.inference import loading  # noqa: E402
from vitdiff_jax.modes import evaluate  # noqa: E402
from vitdiff_jax.runtime import tables  # noqa: E402
from vitdiff_jax.training import loop  # noqa: E402

NETWORKS = {
    "digits": {
        "vit": dict(patch=2, width=64, depth=4, heads=4, bottleneck=16,
                    class_tokens=4, class_tokens_from=1),
        "dit": dict(patch=2, width=64, depth=4, heads=4),
        "uvit": dict(patch=2, width=72, depth=4, heads=4),
        "unet": dict(width=20, multipliers=(1, 2), blocks=1, attention=(1,), head_width=20),
    },
    "fashion_mnist": {
        "vit": dict(patch=4, width=128, depth=6, heads=4, bottleneck=16,
                    class_tokens=4, class_tokens_from=2),
        "dit": dict(patch=4, width=128, depth=6, heads=4),
        "uvit": dict(patch=4, width=128, depth=8, heads=4),
        "unet": dict(width=40, multipliers=(1, 2, 2), blocks=1, attention=(2,), head_width=40),
    },
}  # fmt: skip
"""For each data set; those of `vit` are the shipped config's."""
TRIAL, PART = 350, 50
"""Steps to find a network's speed, timed in parts: the median of all but the first, in which it is
compiled, so that a moment of other work does not count."""


def trained_for(given: dict, workdir: pathlib.Path) -> None:
    """Train to the end, or end here, when a signal stops it."""
    if loop.train(given, workdir) != "finished":
        sys.exit(75)


def speed(given: dict, workdir: pathlib.Path) -> float:
    """Steps per second, from a short run of its own."""
    trial = copy.deepcopy(given)
    trial["train"]["steps"] = TRIAL
    trial["log"]["every"] = PART
    trained_for(trial, workdir)
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return statistics.median(line["steps_per_second"] for line in lines if line["step"] > PART)


def row_of(name: str, rate: float, given: dict, steps: int, workdir: pathlib.Path) -> dict:
    """Train a network at a learning rate and measure it."""
    given = copy.deepcopy(given)
    given["train"]["steps"] = steps
    given["optimizer"]["learning_rate"] = rate
    trained_for(given, workdir)
    evaluate.main(None, workdir)
    report = json.loads((workdir / "evaluation.json").read_text())
    parameters = loading.load(workdir).weights
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    return {
        "model": name, "parameters": count, "learning_rate": rate, "steps": steps,
        "results": report["rows"][0]["results"], "real_images": report["real_images"],
    }  # fmt: skip


def main() -> None:
    """Measure, print, write after each row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--rates", default="", help="learning rates; default: the config's")
    parser.add_argument("--only", default="", help="some of the networks")
    args, overrides = parser.parse_known_args()
    config = config_lib.load(args.config, overrides).to_dict()
    config["log"].update(sample_every=0, heldout_every=0)
    rates = [float(rate) for rate in args.rates.split(",") if rate]
    rows = []
    for name, options in NETWORKS[config["data"]["name"]].items():
        if args.only and name not in args.only.split(","):
            continue
        given = config | {"model": {"name": name} | options}
        pace = speed(given, args.workdir / f"{name}-trial")
        for rate in rates or [config["optimizer"]["learning_rate"]]:
            steps = round(args.minutes * 60 * pace)
            row = row_of(name, rate, given, steps, args.workdir / f"{name}-{rate:g}")
            rows.append(row | {"steps_per_second": round(pace, 2)})
            print(json.dumps(rows[-1]), flush=True)
            tables.write(args.workdir / "denoisers.json", {"minutes": args.minutes, "rows": rows})


if __name__ == "__main__":
    main()
