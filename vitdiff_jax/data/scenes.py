"""Patches of the colour photographs that come inside scikit-image and scikit-learn.

Real colour data without a download: a prior for restoring photographs. Split by scene, once and for
all: no pixel of a held-out scene is trained on, nor another view of one (a stereo pair is a scene).

    train     china, flower, coffee, motorcycle (two views), rocket, immunohistochemistry, hubble
    held out  astronaut, chelsea, retina

Held out are the one natural photograph of 512 px a side, to be restored as a whole; a second one of
another kind (a cat's fur), the smallest, which costs training least; and the retina: an answer to
"does it restore medical photographs?" must come from a scene that was never seen, and half a retina
is not another scene. In training, stained tissue stands for medicine. No grey photographs: they
would teach a prior that is to colourise that grey is natural. Drawings are left out too.
"""

import dataclasses
import importlib.util
import pathlib

import numpy as np
from PIL import Image

from vitdiff_jax.data import transforms
from vitdiff_jax.data.pipeline import DataError, Dataset

FILES = {  # (package, file in it); licences as the packages state them
    "astronaut": ("skimage", "data/astronaut.png"),  # NASA, public domain
    "chelsea": ("skimage", "data/chelsea.png"),  # CC0
    "china": ("sklearn", "datasets/images/china.jpg"),  # CC BY 2.0, danielbuechele
    "coffee": ("skimage", "data/coffee.png"),  # CC0
    "flower": ("sklearn", "datasets/images/flower.jpg"),  # CC BY 2.0, vultilion
    "hubble": ("skimage", "data/hubble_deep_field.jpg"),  # NASA, public domain
    "immunohistochemistry": ("skimage", "data/ihc.png"),  # no known restrictions
    "motorcycle_left": ("skimage", "data/motorcycle_left.png"),  # Middlebury 2014; none stated
    "motorcycle_right": ("skimage", "data/motorcycle_right.png"),
    "retina": ("skimage", "data/retina.jpg"),  # CC0
    "rocket": ("skimage", "data/rocket.jpg"),  # SpaceX, public domain
}
TRAIN = (
    ("china",), ("flower",), ("coffee",), ("motorcycle_left", "motorcycle_right"), ("rocket",),
    ("immunohistochemistry",), ("hubble",),
)  # fmt: skip
"""Scenes, each with its views."""
HELDOUT = {"astronaut": (1, 2), "chelsea": (1, 2), "retina": (2, 4)}
"""Scenes, each with the reductions it is cut at: the retina is soft at its full size."""
REDUCTIONS = (1, 2**0.5, 2, 2**1.5, 4)
"""How much smaller than its file a view is trained on: edges and textures come at many scales."""
LEAST = 8
"""Pixels a side of the smallest patches: those below show hardly an edge."""
PER_EPOCH = 20_000
PER_SIDE = 8
"""Held-out patches down and across a view: alike for all, or the retina would be 80 % of them."""
FLAT = 2.0
"""Held-out patches of less contrast are left out: one black one has a PSNR without bound."""


@dataclasses.dataclass(frozen=True)
class Patches:
    """A `Source` of random square patches, without end; an epoch is nominal.

    scenes: views uint8 [H, W, 3] by scene, by reduction. Each scene comes equally often whatever
    its size: by area, a third of all patches would be Hubble's black sky. Reduction, view, position
    and one of the square's eight orientations are drawn; without random numbers, by the index.
    """

    scenes: tuple[tuple[tuple[np.ndarray, ...], ...], ...]
    size: int

    def __len__(self):
        return PER_EPOCH

    def example(self, index, rng=None):
        rng = np.random.default_rng(index) if rng is None else rng
        views = _one_of(self.scenes[index % len(self.scenes)], rng)
        view = _one_of(views, rng)
        top, left = (int(rng.integers(side - self.size + 1)) for side in view.shape[:2])
        patch = view[top : top + self.size, left : left + self.size]
        return {"image": oriented(patch, int(rng.integers(8)))}


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A `Source` of images uint8 [N, H, W, 3] without conditions."""

    images: np.ndarray

    def __len__(self):
        return len(self.images)

    def example(self, index, rng=None):
        return {"image": self.images[index]}


def photograph(name: str) -> np.ndarray:
    """A photograph of `FILES` as it is: uint8 [H, W, 3]. Raises DataError where it is missing."""
    package, file = FILES[name]
    spec = importlib.util.find_spec(package)  # importing it would take a second
    if spec is None or not spec.submodule_search_locations:
        project = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
        raise DataError(
            f"{package}: not installed, but its photographs are read; install {project}"
        )
    path = pathlib.Path(spec.submodule_search_locations[0]) / file
    try:
        return transforms.pixels(transforms.decode(path.read_bytes(), 3))
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read: {reason}; install its package again") from error


def reduced(view: np.ndarray, factor: float) -> np.ndarray:
    """A view so many times smaller, antialiased bicubic: uint8 [H, W, 3]."""
    height, width = (round(side / factor) for side in view.shape[:2])
    return np.asarray(Image.fromarray(view).resize((width, height), Image.Resampling.BICUBIC))


def oriented(patch: np.ndarray, which: int) -> np.ndarray:
    """One of the square's eight orientations; patch [S, S, C], which 0 (as it is) to 7."""
    if which & 1:
        patch = patch[:, ::-1]
    if which & 2:
        patch = patch[::-1]
    return patch.swapaxes(0, 1) if which & 4 else patch


def dataset(size: int = 32) -> Dataset:
    """Patches of `size` pixels a side, in colour, without labels. Needs no download."""
    heldout = {name: photograph(name) for name in HELDOUT}
    train = [[photograph(name) for name in names] for names in TRAIN]
    most = min(min(view.shape[:2]) for views in (heldout.values(), *train) for view in views)
    if not LEAST <= size <= most:
        raise ValueError(f"size: {size} is not from {LEAST} to {most}, the smallest scene's side")
    patches = Patches(tuple(_pyramid(views, size) for views in train), size)
    cut = [reduced(view, factor) for name, view in heldout.items() for factor in HELDOUT[name]]
    fixed = Fixed(_grids(cut, size))
    return Dataset(
        train=patches,
        heldout=fixed,
        shape=(size, size, 3),
        conditions={},
        origin=f"patches of scikit-image's and scikit-learn's photographs, {len(TRAIN)} scenes to"
        f" train on, {len(fixed)} patches of {len(HELDOUT)} others held out",
        crop=f"{size}x{size} patches, reduced up to {REDUCTIONS[-1]} times",
    )


def _one_of(choices, rng):
    return choices[int(rng.integers(len(choices)))]


def _pyramid(views: list[np.ndarray], size: int) -> tuple[tuple[np.ndarray, ...], ...]:
    """The views of a scene at each reduction that leaves at least `size` pixels a side."""
    levels = [tuple(reduced(view, factor) for view in views) for factor in REDUCTIONS]
    return tuple(level for level in levels if min(level[0].shape[:2]) >= size)


def _grids(views: list[np.ndarray], size: int) -> np.ndarray:
    """Patches evenly spread over the views, in a fixed order of no meaning."""
    found = []
    for view in views:
        counts = [min(PER_SIDE, side // size) for side in view.shape[:2]]
        rows, columns = (
            np.linspace(0, side - size, count).round().astype(int)
            for side, count in zip(view.shape[:2], counts)
        )
        found += [view[r : r + size, c : c + size] for r in rows for c in columns]
    found = np.stack([patch for patch in found if patch.std((0, 1)).max() >= FLAT])
    return found[np.random.default_rng(0).permutation(len(found))]
