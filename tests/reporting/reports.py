"""A workdir as runs leave it, made by hand in a moment, and the report of one taken apart."""

import base64
import html.parser
import io
import json
import re

import numpy as np
from PIL import Image

from vitdiff_jax.inference import sampling
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.interop import sheets

RANDOM = np.random.default_rng(0)
BESIDE = RANDOM.integers(0, 256, (3, 8, 16, 1), np.uint8)  # degraded, restored, true
SHEET = RANDOM.integers(0, 256, (4, 3, 8, 8, 3), np.uint8)  # four images; degraded, ddrm, original
VERSIONS = {"jax": "0.10.2", "numpy": "2.0"}
METRICS = [
    {"step": 10, "loss": 1.5, "grad_norm": 3.0, "learning_rate": 1e-3},
    {"step": 20, "loss": 0.5, "grad_norm": 1.0, "learning_rate": 5e-4},
    {"step": 20, "heldout/loss": 0.75, "heldout/t=0.500": 0.7, "heldout/t=0.900": 0.8},
]
EVALUATION = {
    "rows": [
        {"guidance": g, "steps": 5, "results": {"fd/pixels": {"value": v}}, "seconds": 1.0}
        for g, v in ((1.0, 0.75), (2.0, 0.25))
    ],
    "best": 1, "images": 1000, "versions": VERSIONS,
    "real_images": {"of": "1000 real images", "results": {"fd/pixels": {"value": 0.125}}},
}  # fmt: skip
PLAN = {
    "topology": "v5e:2x2", "chips": 4, "how": "compiled in full", "parameters": 1234567,
    "flops_per_image": 5e9, "batch": 64, "fits": True, "estimate": "the compiler's cycles",
    "bytes_per_device": {"parameters": 2**30, "total": 2**31}, "memory_per_device": 2**34,
    "seconds_per_step": 0.1, "images_per_second": 640.0, "estimated_mfu": 0.5,
    "estimated_mfu_with_communication": 0.4, "steps": 20, "hours": 2.0, "chip_hours": 8.0,
    "price": 9.6,
    "collectives": {"bytes": {"all-reduce": 2**20}, "seconds": 1e-3, "hidden_seconds": 0.0},
    "operations": [{"name": "block/attention", "seconds": 0.05, "share": 0.5}],
}  # fmt: skip
CONFIG = {
    "data": {"name": "folder", "path": "pictures/stamps"}, "model": {"name": "vit", "width": 64},
    "train": {"steps": 20},
}  # fmt: skip
DATA = {"images": 241, "heldout": 13, "shape": [8, 8, 1], "classes": 3, "attributes": None}
PAIR = {
    "rows": [
        {"input": "photos/cat.png", "restored": "restored/cat.png", "task": "inpaint",
         "method": "ddrm", "noise_std": 0.05, "seconds": 1.5},
    ],
    "versions": VERSIONS,
}  # fmt: skip
COMPARED = {
    "rows": [
        {"task": "denoise", "method": method, "picture": "restored/denoise.png",
         "results": {"psnr/uint8": {"value": 20.0, "standard_error": 0.5}}}
        for method in ("degraded", "ddrm")
    ],
    "images": 4, "shown": 4,
}  # fmt: skip


def workdir(home):
    """A workdir with all that a report can show."""
    home.mkdir()
    for name, found in (
        ("config", CONFIG), ("data", DATA), ("evaluation", EVALUATION), ("plan", PLAN),
        ("restoration", PAIR),
    ):  # fmt: skip
        (home / f"{name}.json").write_text(json.dumps(found))
    (home / "metrics.jsonl").write_text("".join(f"{json.dumps(m)}\n" for m in METRICS))
    (home / "samples").mkdir()
    (home / "restored").mkdir()
    for step in (10, 20):
        level = np.full((4, 8, 8, 1), 10 * step, np.uint8)
        samples(home, f"{step:08d}", level, ["cat", "dog", "eel", "cat"], step=step, seed=0)
    ways = sheets.Sheet("trajectories", SHEET[:2], names=["cat", "dog"], about={"step": 20})
    sheets.write(home / "samples" / "00000020-n2-frames3.png", ways)
    samples(home, "step20-label-2-seed0-n4", SHEET[:, 0], ["eel"] * 4, step=20, seed=0)
    grid(home / "restored" / "cat-beside.png", BESIDE, 3)
    image_lib.save_png(home / "restored" / "cat.png", BESIDE[1])
    return home


def samples(home, name, images, names, **about):
    """A sheet of samples as training and --mode=sample write it."""
    sheets.write(home / "samples" / f"{name}.png", sampling.samples_sheet(images, names, **about))


def grid(path, images, columns):
    image_lib.save_png(path, image_lib.grid(images, columns))


class Page(html.parser.HTMLParser):
    """headings, captions, pictures {alt: pixels}, and attributes of all elements, of a report."""

    def __init__(self, path):
        super().__init__()
        self.text = path.read_text()
        self.elements, self.pictures, self._tag = [], {}, ""
        self.headings, self.captions, self.lead = [], [], ""
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        self._tag, found = tag, dict(attributes)
        self.elements.append((tag, found))
        if tag == "img":
            data = base64.b64decode(found["src"].partition(",")[2])
            self.pictures[found["alt"]] = np.asarray(Image.open(io.BytesIO(data)))

    def handle_data(self, data):
        text = data.strip()
        if text and self._tag == "h2":
            self.headings.append(text)
        if text and self._tag == "figcaption":
            self.captions.append(text)
        if text and self._tag == "p" and not self.lead:
            self.lead = text
        self._tag = ""

    def all(self, tag, name):
        """The values of an attribute."""
        return [found[name] for kind, found in self.elements if kind == tag and name in found]

    def names(self, kind):
        """The names beside pictures: kind "columns" or "rows", as their parts are written."""
        parts = re.findall(rf'<div class="{kind}" aria-hidden="true">(.*?)</div>', self.text, re.S)
        return [re.findall(r"<span[^>]*>(.*?)</span>", part) for part in parts]
