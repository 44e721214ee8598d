"""Patches of the colour photographs bundled with scikit-image and scikit-learn.

Real colour data without a download, for a prior to restore photographs with. The split is by scene:
training uses no pixel of a held-out scene, nor another view of it (a stereo pair is one scene).

    train     china, flower, coffee, motorcycle (two views), rocket, immunohistochemistry, hubble
    held out  astronaut, chelsea, retina

Held out are the only natural photograph of 512x512 px, to be restored as a whole; the smallest of a
different kind (a cat's fur), which costs the training set least; and the retina, since a test on
medical images needs an unseen scene. Medical training data is the stained tissue. Grey photographs
are excluded, as they would teach the prior that grey is natural, which is wrong for colourisation;
so are drawings.
"""

import dataclasses
import importlib.util
import pathlib

import numpy as np
from PIL import Image

from vitdiff_jax.data import transforms
from vitdiff_jax.data.images import choose
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
"""Scenes, each with its downsampling factors: at full resolution the retina is blurred."""
REDUCTIONS = (1, 2**0.5, 2, 2**1.5, 4)
"""Downsampling factors in training, for edges and textures at many scales."""
MIN_SIZE = 8
"""Side of the smallest patches in pixels: smaller ones hardly show an edge."""
PER_EPOCH = 20_000
PER_SIDE = 8
"""Held-out patches per row and column of a view: otherwise 80 % would show the retina."""
FLAT = 2.0
"""Held-out patches of less contrast are left out: the PSNR of a black one is unbounded."""


@dataclasses.dataclass(frozen=True)
class Patches:
    """An endless `Source` of random square patches; the length of an epoch is nominal.

    scenes: views uint8 [H, W, 3] by scene and factor. All scenes are equally frequent: by area, a
    third of the patches would be black sky from Hubble. Factor, view, position and one of the eight
    orientations of a square are random; without an rng they depend on the index.
    """

    scenes: tuple[tuple[tuple[np.ndarray, ...], ...], ...]
    size: int

    def __len__(self):
        return PER_EPOCH

    def example(self, index, rng=None):
        rng = np.random.default_rng(index) if rng is None else rng
        views = choose(self.scenes[index % len(self.scenes)], rng)
        view = choose(views, rng)
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
    """A photograph of `FILES`: uint8 [H, W, 3]. Raises DataError where it is missing."""
    package, file = FILES[name]
    spec = importlib.util.find_spec(package)  # importing it takes a second
    if spec is None or not spec.submodule_search_locations:
        project = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
        raise DataError(
            f"{package} is not installed, but its photographs are needed; install {project}"
        )
    path = pathlib.Path(spec.submodule_search_locations[0]) / file
    try:
        return transforms.pixels(transforms.decode(path.read_bytes(), 3))
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read: {reason}; install its package again") from error


def reduced(view: np.ndarray, factor: float) -> np.ndarray:
    """A view downsampled by `factor`, antialiased bicubic: uint8 [H, W, 3]."""
    height, width = (round(side / factor) for side in view.shape[:2])
    return np.asarray(Image.fromarray(view).resize((width, height), Image.Resampling.BICUBIC))


def oriented(patch: np.ndarray, which: int) -> np.ndarray:
    """One of the eight orientations of a square patch [S, S, C]; which: 0 (identity) to 7."""
    if which & 1:
        patch = patch[:, ::-1]
    if which & 2:
        patch = patch[::-1]
    return patch.swapaxes(0, 1) if which & 4 else patch


def dataset(size: int = 32) -> Dataset:
    """Colour patches of size x size pixels, without labels."""
    heldout = {name: photograph(name) for name in HELDOUT}
    train = [[photograph(name) for name in names] for names in TRAIN]
    most = min(min(view.shape[:2]) for views in (heldout.values(), *train) for view in views)
    if not MIN_SIZE <= size <= most:
        raise ValueError(
            f"size: {size} is not between {MIN_SIZE} and {most}, the side of the smallest scene"
        )
    patches = Patches(tuple(pyramid(views, size) for views in train), size)
    held = [reduced(view, factor) for name, view in heldout.items() for factor in HELDOUT[name]]
    fixed = Fixed(grids(held, size))
    return Dataset(
        train=patches,
        heldout=fixed,
        shape=(size, size, 3),
        conditions={},
        origin=f"random patches of {len(TRAIN)} photographs from scikit-image and scikit-learn"
        f" ({len(fixed)} patches of {len(HELDOUT)} others held out)",
        crop=f"{size}x{size} patches, downsampled up to {REDUCTIONS[-1]} times",
    )


def pyramid(views: list[np.ndarray], size: int) -> tuple[tuple[np.ndarray, ...], ...]:
    """The views of a scene at each factor that leaves at least `size` pixels on each side."""
    levels = [tuple(reduced(view, factor) for view in views) for factor in REDUCTIONS]
    return tuple(level for level in levels if min(level[0].shape[:2]) >= size)


def grids(views: list[np.ndarray], size: int, per_side: int = PER_SIDE) -> np.ndarray:
    """Evenly spaced patches [N, size, size, 3] of the views, in a fixed random order."""
    found = []
    for view in views:
        counts = [min(per_side, side // size) for side in view.shape[:2]]
        rows, columns = (
            np.linspace(0, side - size, count).round().astype(int)
            for side, count in zip(view.shape[:2], counts)
        )
        found += [view[r : r + size, c : c + size] for r in rows for c in columns]
    found = [patch for patch in found if patch.std((0, 1)).max() >= FLAT]
    if not found:
        raise DataError("the held-out photographs show nothing but flat areas; add others")
    found = np.stack(found)
    return found[np.random.default_rng(0).permutation(len(found))]
