"""Images of any size from a denoiser of a fixed size, by overlapping tiles (MultiDiffusion).

    E[x | x_t] at a pixel = sum_k w_k (E[x | tile k of x_t] at that pixel),    sum_k w_k = 1

The estimates are averaged in every call, so at every noise level (arXiv:2302.08113): all tiles
belong to one image from the start, and there are no seams to blend afterwards. The result is a
`Denoise` for any sampler or restorer.

The weights are the product of a window over rows and one over columns. Where two tiles overlap by L
pixels, a tile's window is 0 in its outer L // 4 pixels, which have the least context, then rises
smoothly as sin^2; at the border of the image it is 1. So tiling is exact for a denoiser whose
receptive field reaches no further than L // 4 pixels.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise

Tick = Callable[[Any], None]
"""Called on the host before each call of the network, with a value that does not matter."""


@dataclasses.dataclass(frozen=True)
class Tiling:
    """The tiles of an image: evenly spaced, the outermost flush with its borders.

    shape: (H, W) of the image. tile: (h, w) of the denoiser's images.
    overlap: the minimum overlap of neighbouring tiles in pixels.
    An image smaller than the tile is padded to its size by reflection, on all sides.
    """

    shape: tuple[int, int]
    tile: tuple[int, int]
    overlap: int

    def __post_init__(self):
        """Refuse invalid options; messages start with the option."""
        if min(*self.shape, *self.tile) < 1:
            raise ValueError(f"tile: cannot cut {self.shape} pixels into tiles of {self.tile}")
        if not 0 <= self.overlap < min(self.tile):
            raise ValueError(f"overlap: {self.overlap} is not in [0, {min(self.tile) - 1}]")

    @property
    def count(self) -> int:
        """The number of tiles of one image."""
        down, right = self._axes
        return len(down.sources) * len(right.sources)

    def cut(self, x: jax.Array) -> jax.Array:
        """The tiles [B * count, h, w, C] of images [B, H, W, C], image by image, row by row."""
        if x.shape[1:3] != self.shape:
            raise ValueError(f"images of {x.shape[1:3]} pixels, but the tiling is for {self.shape}")
        down, right = self._axes
        x = jnp.take(x, down.sources, 1, mode="clip")  # [B, n, h, W, C]
        x = jnp.take(x, right.sources, 3, mode="clip")  # [B, n, h, m, w, C]
        return x.swapaxes(2, 3).reshape(-1, *self.tile, x.shape[-1])  # [B * n * m, h, w, C]

    def join(self, tiles: jax.Array) -> jax.Array:
        """The weighted mean [B, H, W, C] of tiles [B * count, h, w, C] in the order of `cut`."""
        down, right = self._axes
        (h, w), n, m = self.tile, len(down.sources), len(right.sources)
        x = tiles.reshape(-1, n, m, h, w, tiles.shape[-1]).swapaxes(2, 3)  # [B, n, h, m, w, C]
        x = x.reshape(-1, n * h, m * w, tiles.shape[-1])
        return right.gather(down.gather(x, 1), 2)

    @functools.cached_property
    def _axes(self):
        """(down, right), compile-time constants."""
        return tuple(_axis(n, tile, self.overlap) for n, tile in zip(self.shape, self.tile))


class Cuts(Protocol):
    """Tiles at their places, such as a `Tiling`."""

    @property
    def count(self) -> int:
        """The number of tiles of one image."""
        ...

    def cut(self, x: jax.Array) -> jax.Array:
        """See `Tiling.cut`."""
        ...

    def join(self, tiles: jax.Array) -> jax.Array:
        """See `Tiling.join`."""
        ...


def spread(tiling: Cuts, tree: Any) -> Any:
    """A pytree of arrays per image as arrays per tile, in the order of `cut`.

    Arrays of rank 4 are images [B, H, W, ...] and are cut; others [B, ...] are repeated.
    """
    return jax.tree.map(
        lambda leaf: tiling.cut(leaf) if leaf.ndim == 4 else jnp.repeat(leaf, tiling.count, 0), tree
    )


def tiled(
    denoise_of: Callable[[Any], Denoise], tiling: Tiling, cond: Any = None,
    batch: int | None = None, tick: Tick | None = None,
) -> Denoise:  # fmt: skip
    """A denoiser of images [B, H, W, C] from one of tiles [N, h, w, C].

    denoise_of: conditions of tiles -> their `Denoise`, including guidance. The conditions must be
        cut like the images: cond, any pytree of arrays [B, ...], goes through `spread`.
    batch: the maximum number of tiles in one call of the network, for gradients too (which then
        cost another forward pass); None: all. Each chunk has tiles from all images, so that a
        sharded batch needs no communication.
    tick: what it raises ends the program. In the gradient of several chunks it is called in the
        forward pass and again in its repetition.

    For an image of the size of a tile this is denoise_of(cond). Reflecting an image smaller than
    the tile makes its noise dependent: better sample at the size of the tile and crop.
    """
    check_batch(batch)
    if tiling.shape == tiling.tile and batch is None:
        return denoise_of(cond)

    def denoise(x_t, t):
        return estimate(denoise_of, tiling, (x_t, t, cond), batch, tick)

    return denoise


def check_batch(batch: int | None) -> None:
    """Raise ValueError for a number of tiles at a time that is none."""
    if batch is not None and batch < 1:
        raise ValueError(f"batch: {batch} tiles at a time is less than 1")


def estimate(
    denoise_of: Callable[[Any], Denoise], tiling: Cuts, inputs: tuple[jax.Array, jax.Array, Any],
    batch: int | None, tick: Tick | None,
) -> jax.Array:  # fmt: skip
    """E[x | x_t] by tiles, from inputs (x_t, t, cond); the rest as for `tiled`."""

    def of_tiles(tiles):
        x_t, t, cond = tiles
        if tick:  # with an operand, or XLA would call it once before the loop
            jax.debug.callback(tick, x_t[0, 0, 0, 0])
        return denoise_of(cond)(x_t, t)

    tiles = spread(tiling, inputs)
    return tiling.join(_in_chunks(of_tiles, tiles, batch or len(tiles[0])))


def chunks(total: int, most: int, devices: int = 1) -> tuple[int, int]:
    """(number, size) of equal chunks, of at most `most` rows, that pad `total` rows least.

    The size is a multiple of the number of devices, if there are several chunks. Smaller chunks
    than needed are less efficient on accelerators: up to a third more of them.
    """
    least = -(-total // (max(1, most // devices) * devices))
    if least == 1:
        return 1, total

    def size(n):
        return -(-total // (n * devices)) * devices

    n = min(range(least, least + least // 3 + 1), key=lambda n: n * size(n))
    return n, size(n)


def _in_chunks(function: Callable[[Any], jax.Array], tree: Any, most: int) -> jax.Array:
    """function(tree) for arrays [N, ...], in equal chunks of at most `most`, one after another.

    `jax.lax.map` with a batch size would vmap over single rows, where a `cond` on the time (as in
    guidance) runs both branches, and would compile the last chunk separately.
    """
    total = jax.tree.leaves(tree)[0].shape[0]
    n, size = chunks(total, most, max(1, jax.sharding.get_abstract_mesh().size))
    if n == 1:
        return function(tree)
    missing = n * size - total  # padded with the first rows

    def split(a):  # [N, ...] -> [n, size, ...]
        a = jnp.concatenate([a, a[:missing]])
        return a.reshape(size, n, *a.shape[1:]).swapaxes(0, 1)

    out = jax.lax.map(jax.checkpoint(function, prevent_cse=False), jax.tree.map(split, tree))
    return out.swapaxes(0, 1).reshape(n * size, *out.shape[2:])[:total]


@dataclasses.dataclass(frozen=True)
class _Axis:
    """One axis: `size` pixels in n tiles of `tile`, each pixel in at most K of them.

    sources: int [n, tile], the image pixel at each position of each tile.
    places: int [K, size], the positions of each pixel in the concatenated tiles.
    weights: [K, size], of the values at these positions; they sum to one.
    """

    sources: np.ndarray
    places: np.ndarray
    weights: np.ndarray

    def gather(self, x: jax.Array, axis: int) -> jax.Array:
        """The weighted mean [..., size, ...] over tiles concatenated along an axis of x."""
        shape = (-1, *[1] * (x.ndim - axis - 1))
        parts = [
            jnp.asarray(weight.reshape(shape), x.dtype) * jnp.take(x, place, axis, mode="clip")
            for place, weight in zip(self.places, self.weights)
        ]
        return functools.reduce(jnp.add, parts)


def _axis(size: int, tile: int, overlap: int) -> _Axis:
    around = max(size, tile)  # with padding
    before = (around - size) // 2
    n = 1 + max(0, -(-(around - tile) // (tile - overlap)))
    starts = np.arange(n) * (around - tile) // max(1, n - 1)
    places = starts[:, None] + np.arange(tile)  # [n, tile]
    folded = (places - before) % (2 * size)
    sources = np.minimum(folded, 2 * size - 1 - folded)

    place, weight = places.ravel(), _windows(starts, tile).ravel()
    weight = weight / np.bincount(place, weight)[place]
    used = np.flatnonzero(weight)
    used = used[np.argsort(place[used], kind="stable")]
    nth = np.arange(len(used)) - np.searchsorted(place[used], place[used])  # among a pixel's tiles
    found = np.zeros((nth.max() + 1, around), int)
    weights = np.zeros(found.shape)
    found[nth, place[used]], weights[nth, place[used]] = used, weight[used]
    inside = np.s_[:, before : before + size]
    return _Axis(sources, found[inside], weights[inside])


def _windows(starts: np.ndarray, tile: int) -> np.ndarray:
    """The unnormalised windows [n, tile] of tiles with these starts."""
    shared = starts[:-1] + tile - starts[1:]
    rises = [np.ones(tile), *(_rise(tile, overlap) for overlap in shared)]
    falls = [*(_rise(tile, overlap)[::-1] for overlap in shared), np.ones(tile)]
    return np.stack(rises) * np.stack(falls)


def _rise(tile: int, overlap: int) -> np.ndarray:
    """0 in the first quarter of the overlap with the previous tile, then sin^2, then 1."""
    if not overlap:
        return np.ones(tile)
    margin = overlap // 4
    ramp = (np.arange(tile) + 0.5 - margin) / (overlap - 2 * margin)
    return np.sin(np.pi / 2 * np.clip(ramp, 0, 1)) ** 2
