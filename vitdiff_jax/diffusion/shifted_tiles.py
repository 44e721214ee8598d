"""Images of any size from a denoiser of a fixed size, by tiles that lie elsewhere in each call.

The tiles lie side by side, so each pixel is estimated once in a call, where `tiles` estimates it
about four times (with an overlap of one half). The grid of tiles is shifted by a random offset in
each call: borders between tiles stay nowhere, and what a call leaves there is removed by the next
ones, as other errors of the estimate are. The patches of a ViT move with their tile, so that
neither do their borders stay.

The outermost tiles are moved inwards, flush with the border of the image: every pixel is seen in a
whole tile of real pixels.

The offset of an image comes from its key, the bits of t and the number of the call at this t, if
there are several (`diffusion.nth_call`). So it is the same in any batch and on any number of
devices; bits of x_t, which differ by rounding, would not be. The denoiser stays a function of x_t
and t, to be differentiated and recomputed at will.

What the last call leaves stays, but there the noise is so weak that tiles hardly disagree. For
deterministic samplers the estimate jumps from call to call by what tiles disagree about; methods
that extrapolate from earlier estimates take these jumps for curvature.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.tiles import Tick, check_batch, estimate

SALT = 0x7469
"""Folded into the keys, which samplers fold with step numbers for their noise."""


@dataclasses.dataclass(frozen=True)
class ShiftedTiling:
    """Tiles side by side. shape: (H, W) of the image. tile: (h, w) of the denoiser's images.

    An image smaller than the tile is padded to its size by reflection, on all sides.
    """

    shape: tuple[int, int]
    tile: tuple[int, int]

    def __post_init__(self):
        """Refuse invalid options; messages start with the option."""
        if min(*self.shape, *self.tile) < 1:
            raise ValueError(f"tile: cannot cut {self.shape} pixels into tiles of {self.tile}")

    @property
    def grid(self) -> tuple[int, int]:
        """The number of tiles in a column and in a row: enough for every offset."""
        down, right = (1 if a <= b else (a - 2) // b + 2 for a, b in zip(self.shape, self.tile))
        return down, right

    @property
    def count(self) -> int:
        """The number of tiles of one image."""
        return self.grid[0] * self.grid[1]

    def offsets(self, keys: jax.Array, t: jax.Array, i: jax.Array | int) -> jax.Array:
        """Where the second tile begins, int32 [B, 2] in 1 ... (h, w), in call i at t [B]."""

        def one(key, t):
            bits = jax.lax.bitcast_convert_type(t.astype(jnp.float32), jnp.uint32)
            key = jax.random.fold_in(jax.random.fold_in(key, SALT), bits)
            return jax.random.randint(
                jax.random.fold_in(key, i), (2,), 1, jnp.asarray(self.tile, jnp.int32) + 1
            )

        return jax.vmap(one)(keys, t)

    def at(self, offsets: jax.Array) -> "Shifted":
        """The tiles of images with these offsets [B, 2]."""
        axes = zip(self.shape, self.tile, self.grid, offsets.T)
        down, right = (_axis(*axis) for axis in axes)
        return Shifted(self, down, right)


@dataclasses.dataclass(frozen=True, eq=False)
class Shifted:
    """Tiles at their places. down, right: (sources [B, n, tile], places [B, size]) of an axis.

    sources: the image pixel at each position of each tile. places: the position of each pixel in
    the concatenated tiles.
    """

    tiling: ShiftedTiling
    down: tuple[jax.Array, jax.Array]
    right: tuple[jax.Array, jax.Array]

    @property
    def count(self) -> int:
        """See `Tiling.count`."""
        return self.tiling.count

    def cut(self, x: jax.Array) -> jax.Array:
        """The tiles [B * count, h, w, C] of images [B, H, W, C], image by image, row by row."""
        if x.shape[1:3] != (shape := self.tiling.shape):
            raise ValueError(f"images of {x.shape[1:3]} pixels, but the tiling is for {shape}")
        rows, columns = (axis[0].reshape(len(x), -1) for axis in (self.down, self.right))
        (n, m), (h, w) = self.tiling.grid, self.tiling.tile
        x = _taken(x, rows, columns).reshape(-1, n, h, m, w, x.shape[-1])
        return x.swapaxes(2, 3).reshape(-1, h, w, x.shape[-1])

    def join(self, tiles: jax.Array) -> jax.Array:
        """The images [B, H, W, C] of tiles [B * count, h, w, C] in the order of `cut`."""
        (n, m), (h, w) = self.tiling.grid, self.tiling.tile
        x = tiles.reshape(-1, n, m, h, w, tiles.shape[-1]).swapaxes(2, 3)
        x = x.reshape(-1, n * h, m * w, tiles.shape[-1])
        return _taken(x, self.down[1], self.right[1])


def shifted(
    denoise_of: Callable[[Any], Denoise], tiling: ShiftedTiling, keys: jax.Array, cond: Any = None,
    batch: int | None = None, tick: Tick | None = None,
) -> Denoise:  # fmt: skip
    """A denoiser of images [B, H, W, C] from one of tiles [N, h, w, C], elsewhere in each call.

    keys: [B], those that the sampler gets. denoise_of, cond, batch, tick: as for `tiles.tiled`.
    Each call with another t has other offsets; several at one t need `diffusion.nth_call`.
    For an image of the size of a tile this is denoise_of(cond).
    """
    check_batch(batch)
    if tiling.shape == tiling.tile and batch is None:
        return denoise_of(cond)
    return _Denoiser(denoise_of, tiling, keys, cond, batch, tick)


@dataclasses.dataclass(frozen=True, eq=False)
class _Denoiser:
    denoise_of: Callable[[Any], Denoise]
    tiling: ShiftedTiling
    keys: jax.Array
    cond: Any
    batch: int | None
    tick: Tick | None
    call: jax.Array | int = 0

    def nth_call(self, i: jax.Array | int) -> Denoise:
        return dataclasses.replace(self, call=i)

    def __call__(self, x_t: jax.Array, t: jax.Array) -> jax.Array:
        tiles = self.tiling.at(self.tiling.offsets(self.keys, t, self.call))
        return estimate(self.denoise_of, tiles, (x_t, t, self.cond), self.batch, self.tick)


def _axis(size: int, tile: int, n: int, offset: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sources, places) of one axis for offsets [B], see `Shifted`."""
    around = max(size, tile)  # with padding
    before = (around - size) // 2
    starts = offset[:, None] + (np.arange(n) - 1) * tile
    starts = jnp.clip(starts, 0, around - tile)
    folded = (starts[:, :, None] + np.arange(tile) - before) % (2 * size)
    sources = jnp.minimum(folded, 2 * size - 1 - folded)
    pixels = before + np.arange(size)
    nth = jnp.clip((pixels - offset[:, None]) // tile + 1, 0, n - 1)  # the tile of each pixel
    return sources, nth * tile + pixels - jnp.take_along_axis(starts, nth, 1)


def _taken(x: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """These rows [B, R] and columns [B, S] of images [B, H, W, C]: [B, R, S, C]."""

    def one(x, rows, columns):
        return jnp.take(jnp.take(x, rows, 0, mode="clip"), columns, 1, mode="clip")

    return jax.vmap(one)(x, rows, columns)
