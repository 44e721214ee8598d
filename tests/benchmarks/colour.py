"""What colours are worth: photographs in grey, coloured by a model, beside leaving them grey.

    python tests/benchmarks/colour.py --workdir=runs/scenes [--input=FOLDER] [--reduce 4 8]
        [--method=ddrm] [--steps=20]

For each photograph (scikit-image's astronaut and chelsea, or a folder's), made grey by the mean of
its channels: the mean CIEDE2000 of its pixels, LPIPS (VGG-16), and seconds, compiling included, of
the picture left grey, restored in colour at full resolution, and with its colours from a picture
reduced by each factor. A difference of 1 can just be seen (CIEDE2000). The pictures stand in
{workdir}/colours, each a row: truth, grey, then as in the table.
"""

import argparse
import os
import pathlib
import sys
import time
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
import numpy as np
from skimage.color import deltaE_ciede2000, rgb2lab

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import vitdiff_jax  # noqa: E402
from vitdiff_jax.data import photos, scenes  # noqa: E402
from vitdiff_jax.evaluation.metric import Setting  # noqa: E402
from vitdiff_jax.experiment import config as config_lib  # noqa: E402
from vitdiff_jax.inference import benchmark, colour, tasks  # noqa: E402
from vitdiff_jax.interop import images as image_lib  # noqa: E402
from vitdiff_jax.runtime import parallel  # noqa: E402

HELDOUT = ("astronaut", "chelsea")


def pictures(folder: pathlib.Path | None) -> Iterator[tuple[str, np.ndarray]]:
    """(name, uint8 [H, W, 3]) of colour photographs."""
    if folder is None:
        yield from ((name, scenes.photograph(name)) for name in HELDOUT)
        return
    for path in photos.find(folder):
        found = photos.read(path).colours
        if found.shape[2] == 3:
            yield path.stem, found if found.dtype == np.uint8 else (found // 257).astype(np.uint8)


def results(model, truth: np.ndarray, factors: list[int], method: str | None):
    """(name, picture [H, W, 3] in [-1, 1], seconds) of each way."""
    x = truth.astype(np.float32) / 127.5 - 1
    grey = x.mean(-1, keepdims=True)
    yield "grey", np.repeat(grey, 3, -1), 0.0
    problem = tasks.from_measurement(grey, 3, "colourise", noise_std=0.0)
    cond, seeds = model.cond(1), np.zeros(1, int)
    for factor in (1, *factors):
        start = time.monotonic()
        if factor == 1:
            found = model._restorer.restore(problem, method, cond, seeds)
        else:
            found = colour.restore(model._restorer, problem, method, cond, seeds, factor)
        seconds = time.monotonic() - start
        yield f"1/{factor}" if factor > 1 else "full size", found.mean, seconds


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--input", type=pathlib.Path, help="a folder of colour photographs")
    parser.add_argument("--reduce", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--method", help="default: the recommended one")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    home = pathlib.Path(args.workdir)
    config = config_lib.read(home / "config.json", [f"--config.restore.steps={args.steps}"])
    model = vitdiff_jax.load(home, config)
    setting = Setting(lambda: None, parallel.make_mesh())
    measures = benchmark.metrics(("lpips",), lambda: setting)
    print("| photograph | colours | CIEDE2000 | LPIPS | seconds |", "| --- " * 5 + "|", sep="\n")
    for name, truth in pictures(args.input):
        shown = [truth]
        for way, found, seconds in results(model, truth, args.reduce, args.method):
            pixels = np.asarray(image_lib.to_uint8(found))
            difference = deltaE_ciede2000(rgb2lab(truth), rgb2lab(pixels)).mean()
            pair = [found[None]], [truth[None] / np.float32(127.5) - 1]
            lpips = benchmark.measured(*pair, measures)["results"]["lpips/vgg16"]["value"]
            row = name, way, f"{difference:.2f}", f"{lpips:.3f}", f"{seconds:.1f}"
            print("|", " | ".join(row), "|", flush=True)
            shown.append(pixels)
        target = home / "colours" / f"{name}.png"
        target.parent.mkdir(exist_ok=True)
        image_lib.save_png(target, image_lib.grid(np.stack(shown), len(shown)))


if __name__ == "__main__":
    main()
