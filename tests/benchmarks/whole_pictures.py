"""Whole photographs, degraded and restored: the recommended method beside those without a network.

    python tests/benchmarks/whole_pictures.py --input=photographs/heldout
        --classical=runs/photos/classical.json [--workdir=pretrained:photos] [--side 320]
        [--count 6] [--methods diffpir,dps] [--output FOLDER]

The first `count` photographs of a folder, made smaller until their longer side is `side`, with
noise 0.1. --methods: each where it applies, in place of the recommended one. The classical methods
are those of `classical.py`, with the options that it chose on training crops, but for biharmonic
inpainting, which takes minutes a picture. PSNR, SSIM and LPIPS (VGG-16) with 95 % intervals over
photographs, and seconds a picture, compiling included. Figures (truth, degraded, then by method)
stand in --output.
"""

import argparse
import functools
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import vitdiff_jax  # noqa: E402
from tests.benchmarks import classical  # noqa: E402
from vitdiff_jax import restoration  # noqa: E402
from vitdiff_jax.data import photos  # noqa: E402
from vitdiff_jax.evaluation.metric import Setting  # noqa: E402
from vitdiff_jax.inference import benchmark, tasks  # noqa: E402
from vitdiff_jax.interop import images as image_lib  # noqa: E402
from vitdiff_jax.runtime import parallel, tables  # noqa: E402

TASKS = (
    "mask:kind=strokes", "mask:kind=random,share=0.7", "downsample:factor=2,kind=average",
    "blur:kind=gaussian,size=9,std=1.5", "denoise",
)  # fmt: skip
NOISE = 0.1


def pictures(folder: pathlib.Path, side: int, count: int) -> list[np.ndarray]:
    """In [-1, 1], [1, H, W, 3], with even sizes."""
    found = []
    for path in photos.find(folder)[:count]:
        picture = Image.fromarray(photos.read(path).colours)
        scale = side / max(picture.size)
        size = [2 * round(n * scale / 2) for n in picture.size]
        pixels = np.asarray(picture.resize(size, Image.Resampling.LANCZOS), np.float32)
        found.append(pixels[None] / 127.5 - 1)
    return found


def repairs(task: str, case: tasks.InverseProblem, chosen: list[str]) -> Iterator[tuple]:
    """(name, function of a case) of the classical methods, with the options chosen for a task."""
    for name, repair, option, _ in classical.methods(case):
        if name == "biharmonic":
            continue
        if option:
            name = next(text for text in chosen if text.startswith(f"{name}:"))
            value = float(name.partition("=")[2])
            repair = functools.partial(repair, **{option: value})
        yield name, repair


def rows_of(task: str, model, methods, truth: list[np.ndarray], chosen: list[str], measures):
    """(row, pictures) by method, `degraded` first. methods: names; none: the recommended one."""
    seeds = range(len(truth))
    cases = [tasks.from_clean(x, task, None, NOISE, np.array([i])) for i, x in enumerate(truth)]

    def row(method, found, seconds=None):
        costs = {"seconds": round(seconds / len(found), 2)} if seconds else {}
        about = {"task": task, "method": method, "noise_std": NOISE}
        return about | costs | benchmark.measured(found, truth, measures), found

    yield row("degraded", [case.images for case in cases])
    operator = cases[0].operator
    known = {n: m.TRAITS.supports(operator) for n, m in restoration.methods().items()}
    for method in [n for n in methods if known[n]] if methods else [None]:
        start = time.monotonic()
        found = [
            model.restore(x[0], task, method=method, degrade=True, noise_std=NOISE, seed=i)
            for x, i in zip(truth, seeds)
        ]
        restored = [one.samples[:1] for one in found]
        yield row(found[0].about["method"], restored, time.monotonic() - start)
    for name, repair in repairs(task, cases[0], chosen):
        start = time.monotonic()
        restored = [repair(case) for case in cases]
        yield row(name, restored, time.monotonic() - start)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--workdir", default="pretrained:photos")
    parser.add_argument("--input", type=pathlib.Path, required=True)
    parser.add_argument("--classical", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("whole_pictures"))
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--methods", default="")
    args = parser.parse_args()
    model, methods = vitdiff_jax.load(args.workdir), args.methods.split(",") if args.methods else []
    truth = pictures(args.input, args.side, args.count)
    setting = Setting(lambda: None, parallel.make_mesh())
    measures = benchmark.metrics(("psnr", "ssim", "lpips"), lambda: setting)
    args.output.mkdir(parents=True, exist_ok=True)
    known, rows = json.loads(args.classical.read_text())["rows"], []
    for task in TASKS:
        # Strokes are filled in like a box: the nearest task that options were chosen for.
        kind = task.replace("mask:kind=strokes", "mask:kind=box")
        chosen = [row["method"] for row in known if row["task"].startswith(kind)]
        shown = [truth]
        for row, found in rows_of(task, model, methods, truth, chosen, measures):
            rows.append(row)
            shown.append(found)
            (args.output / "rows.json").write_text(json.dumps(rows))
        for i in range(len(truth)):
            strip = image_lib.to_uint8(np.concatenate([part[i] for part in shown], 2))
            name = benchmark.picture_of(task).removesuffix(".png")
            image_lib.save_png(args.output / f"{name}-{i}.png", np.asarray(strip)[0])
    print(*tables.aligned(tables.of_restoration(rows)), sep="\n")


if __name__ == "__main__":
    main()
