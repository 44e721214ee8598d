"""How many scratches `--mask=auto` finds in photographs, and what it takes for scratches.

    python tests/benchmarks/scratches.py [--photographs chelsea retina flower] [--out=FOLDER]

Photographs in colour, grey and sepia get curved lines 1 to 4 px wide, bright and dark (by 512 px of
the shorter side; wider in larger ones), dust, and noise of 0, 0.05 and 0.1. Printed are precision
(of what is marked, the share on scratches or dust) and recall (of the lines, the share that is
marked), both to a pixel, and the share of the clean photograph, with the same noise, that is marked
wrongly. The constants of `operators/scratches.py` were chosen on astronaut, coffee, rocket, china.
--out: pictures to look at: damaged, with red for what is marked and green for what is missed, and
clean.
"""

import argparse
import pathlib
import sys
import time
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vitdiff_jax.data import scenes  # noqa: E402
from vitdiff_jax.operators import scratches  # noqa: E402

LOOKS = (("colour", 0.0), ("grey", 0.05), ("sepia", 0.1))
"""Tones, and the standard deviation of the noise in units of [-1, 1]."""
LINES, SPOTS, FINE = 8, 12, 4
"""Numbers of each, and the subpixels per side of a pixel in which they are drawn."""
AROUND = np.ones((3, 3))


def toned(x: np.ndarray, look: str) -> np.ndarray:
    """A picture in [-1, 1] as it is, in grey, or in brown."""
    if look == "colour":
        return x
    grey = x @ np.array([[0.299], [0.587], [0.114]])
    if look == "grey":
        return grey
    return np.concatenate([0.85 * grey + 0.05, 0.75 * grey - 0.15, 0.55 * grey - 0.41], -1)


def line(rng: np.random.Generator, width: int, height: int) -> tuple[list, float]:
    """(points along a Bezier curve, thickness)."""
    size = min(width, height)
    start, angle = rng.uniform(0, 1, 2) * (width, height), rng.uniform(0, 2 * np.pi)
    along = rng.uniform(0.15, 0.8) * size * np.array([np.cos(angle), np.sin(angle)])
    bends = rng.uniform(-0.15, 0.15, 2)[:, None] * (along[::-1] * (-1, 1))
    corners = [start, start + along / 3 + bends[0], start + 2 * along / 3 + bends[1], start + along]
    t = np.linspace(0, 1, 60)[:, None]
    weights = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
    curve = sum(w * c for w, c in zip(weights, corners))
    return [tuple(FINE * p) for p in np.asarray(curve)], rng.uniform(1, 4) * max(1, size / 512)


def damaged(x: np.ndarray, rng: np.random.Generator, noise: float):
    """(the picture with scratches, dust and noise, where lines are, where dust is)."""
    height, width = x.shape[:2]
    marks = {"line": np.zeros((height, width), bool), "spot": np.zeros((height, width), bool)}
    for kind in ["line"] * LINES + ["spot"] * SPOTS:
        sheet = Image.new("L", (FINE * width, FINE * height))
        pen: Any = ImageDraw.Draw(sheet)
        if kind == "line":
            points, wide = line(rng, width, height)
            pen.line(points, fill=255, width=round(FINE * wide), joint="curve")
        else:
            middle, radius = rng.uniform(0, 1, 2) * (width, height), rng.uniform(1, 4)
            pen.ellipse([*(FINE * (middle - radius)), *(FINE * (middle + radius))], fill=255)
        cover = np.asarray(sheet.resize((width, height), Image.Resampling.BOX))[..., None] / 255
        x = x * (1 - cover) + rng.choice([-1, 1]) * rng.uniform(0.7, 1) * cover
        marks[kind] |= cover[..., 0] > 0.5
    return noisy(x, rng, noise), marks["line"], marks["spot"]


def noisy(x: np.ndarray, rng: np.random.Generator, noise: float) -> np.ndarray:
    """With noise, clipped as in a file."""
    return np.clip(x + noise * rng.standard_normal(x.shape), -1, 1)


def share(one: np.ndarray, other: np.ndarray) -> float:
    """Of the pixels of one, the share that is on the other or next to it."""
    return (one & ndimage.binary_dilation(other, AROUND)).sum() / max(one.sum(), 1)


def shown(x: np.ndarray, red: np.ndarray, green: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] with coloured pixels."""
    pixels = np.broadcast_to((x + 1) * 127.5, (*x.shape[:2], 3)).astype(np.uint8)
    return np.where(red[..., None], (255, 0, 0), np.where(green[..., None], (0, 255, 0), pixels))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--photographs", nargs="+", default=["chelsea", "retina", "flower"])
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    print(
        "| photograph | noise | precision | recall | clean, marked | seconds |",
        "| --- " * 6 + "|",
        sep="\n",
    )
    for seed, name in enumerate(args.photographs):
        photograph = scenes.photograph(name) / 127.5 - 1
        for look, noise in LOOKS:
            rng, x = np.random.default_rng(seed), toned(photograph, look)
            y, lines, spots = damaged(x, rng, noise)
            start = time.monotonic()
            found = scratches.find(y)
            seconds = time.monotonic() - start
            wrong = scratches.find(noisy(x, rng, noise))
            numbers = share(found, lines | spots), share(lines, found)
            row = [
                f"{name}, {look}",
                noise,
                *(f"{a:.2f}" for a in numbers),
                f"{wrong.mean():.2%}",
                f"{seconds:.1f}",
            ]
            print("|", " | ".join(map(str, row)), "|", flush=True)
            if args.out:
                args.out.mkdir(exist_ok=True)
                none = np.zeros_like(found)
                sheet = [
                    shown(y, none, none),
                    shown(y, found, lines & ~found),
                    shown(x, wrong, none),
                ]
                Image.fromarray(np.concatenate(sheet, 1).astype(np.uint8)).save(
                    args.out / f"{name}-{look}.png"
                )


if __name__ == "__main__":
    main()
