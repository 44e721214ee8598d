"""Images of any size from a denoiser of one size: overlapping tiles, denoised jointly.

    E[x | x_t] at a pixel = sum_k w_k (E[x | tile k of x_t] at that pixel),    sum_k w_k = 1

The mean is taken of every estimate, so at every noise level, as MultiDiffusion does
(arXiv:2302.08113): all tiles are parts of one image from the start, where images made tile by tile
would have to be sewn together. What comes out is a `Denoise`, for every sampler and restorer.

The weights are a product of one window for the rows and one for the columns. Where two tiles
overlap by L pixels, a tile's window is 0 in the outer L // 4 of them, where it sees the least of
what is around, then rises as sin^2, smooth at both ends; on the image's own border it stays 1. So
tiles give what the whole image gives, wherever the denoiser looks no further than L // 4 pixels.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion.process import Denoise


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Where the tiles of an image lie: evenly spread, the outermost flush with its borders.

    shape: (H, W) of the image. tile: (h, w) of the denoiser's images.
    overlap: by how many pixels neighbours overlap at least.
    Where the image is smaller than the tile it is mirrored to its size, from the middle.
    """

    shape: tuple[int, int]
    tile: tuple[int, int]
    overlap: int

    def __post_init__(self):
        """Refuse what cannot work; messages start with the option that they are about."""
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
        """The tiles [B * count, h, w, C] of images [B, H, W, C].

        Image by image, the tiles of each row by row.
        """
        if x.shape[1:3] != self.shape:
            raise ValueError(f"images of {x.shape[1:3]} pixels, but the tiling is of {self.shape}")
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

    def spread(self, tree: Any) -> Any:
        """What belongs to images as what belongs to their tiles, in the order of `cut`.

        Arrays with four axes are images [B, H, W, ...] and are cut; others [B, ...] are repeated.
        """
        return jax.tree.map(
            lambda leaf: self.cut(leaf) if leaf.ndim == 4 else jnp.repeat(leaf, self.count, 0), tree
        )

    @functools.cached_property
    def _axes(self):
        """(down, right), constants of every program that uses them."""
        return tuple(_axis(n, tile, self.overlap) for n, tile in zip(self.shape, self.tile))


def tiled(
    denoise_of: Callable[[Any], Denoise], tiling: Tiling, cond: Any = None, batch: int | None = None
) -> Denoise:
    """A denoiser of images [B, H, W, C] from one of tiles [N, h, w, C].

    denoise_of: from the tiles' conditions to their `Denoise`; guidance belongs inside of it. It is
        a function because the conditions must be cut in step with the images: cond, any tree of
        arrays [B, ...], is spread over the tiles as `Tiling.spread` says.
    batch: the most tiles that go through the network at once, their derivatives too (which costs
        another forward pass where there are some); None: all. A piece takes its tiles from all
        over the batch, so that images stay on the devices that they are on.

    For an image of the tile's size it is denoise_of(cond). Noise that is mirrored with an image
    smaller than the tile is no longer independent: better sample at the tile's size, and cut then.
    """
    if batch is not None and batch < 1:
        raise ValueError(f"batch: {batch} tiles at once are too few")
    if tiling.shape == tiling.tile and batch is None:
        return denoise_of(cond)

    def estimate(tiles):
        x_t, t, cond = tiles
        return denoise_of(cond)(x_t, t)

    def denoise(x_t, t):
        tiles = tiling.spread((x_t, t, cond))
        return tiling.join(_in_pieces(estimate, tiles, batch or len(tiles[0])))

    return denoise


def _in_pieces(function: Callable[[Any], jax.Array], tree: Any, most: int) -> jax.Array:
    """function(tree), for arrays [N, ...], in equal pieces of at most `most` one after another.

    Not `jax.lax.map` by itself: its pieces are vmapped batches of one, in which a `cond` on the
    time (as in guidance) runs both of its branches, and it compiles the last piece separately.
    """
    total = jax.tree.leaves(tree)[0].shape[0]
    pieces = -(-total // most)
    if pieces == 1:
        return function(tree)
    size = -(-total // pieces)
    missing = pieces * size - total  # less than `pieces`; filled up with the first ones

    def split(a):  # [N, ...] -> [pieces, size, ...]
        a = jnp.concatenate([a, a[:missing]])
        return a.reshape(size, pieces, *a.shape[1:]).swapaxes(0, 1)

    out = jax.lax.map(jax.checkpoint(function, prevent_cse=False), jax.tree.map(split, tree))
    return out.swapaxes(0, 1).reshape(pieces * size, *out.shape[2:])[:total]


@dataclasses.dataclass(frozen=True)
class _Axis:
    """One direction: of `size` pixels in n tiles of `tile`, each pixel in at most K of them.

    sources: int [n, tile], the pixel of the image that is there in each tile.
    places: int [K, size], where each pixel is in the tiles laid end to end.
    weights: [K, size], of its values there; they sum to one.
    """

    sources: np.ndarray
    places: np.ndarray
    weights: np.ndarray

    def gather(self, x: jax.Array, axis: int) -> jax.Array:
        """The weighted mean [..., size, ...] over tiles laid end to end along an axis of x."""
        shape = (-1, *[1] * (x.ndim - axis - 1))
        parts = [
            jnp.asarray(weight.reshape(shape), x.dtype) * jnp.take(x, place, axis, mode="clip")
            for place, weight in zip(self.places, self.weights)
        ]
        return functools.reduce(jnp.add, parts)


def _axis(size: int, tile: int, overlap: int) -> _Axis:
    around = max(size, tile)  # with what is mirrored
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
    nth = np.arange(len(used)) - np.searchsorted(place[used], place[used])  # of its pixel's tiles
    found = np.zeros((nth.max() + 1, around), int)
    weights = np.zeros(found.shape)
    found[nth, place[used]], weights[nth, place[used]] = used, weight[used]
    inside = np.s_[:, before : before + size]
    return _Axis(sources, found[inside], weights[inside])


def _windows(starts: np.ndarray, tile: int) -> np.ndarray:
    """The windows [n, tile] of tiles that start there, before they are made to sum to one."""
    shared = starts[:-1] + tile - starts[1:]
    rises = [np.ones(tile), *(_rise(tile, overlap) for overlap in shared)]
    falls = [*(_rise(tile, overlap)[::-1] for overlap in shared), np.ones(tile)]
    return np.stack(rises) * np.stack(falls)


def _rise(tile: int, overlap: int) -> np.ndarray:
    """0 in a quarter of the overlap with the tile before, then sin^2, and 1 in its last quarter."""
    if not overlap:
        return np.ones(tile)
    margin = overlap // 4
    ramp = (np.arange(tile) + 0.5 - margin) / (overlap - 2 * margin)
    return np.sin(np.pi / 2 * np.clip(ramp, 0, 1)) ** 2
