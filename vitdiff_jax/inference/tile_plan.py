"""How a picture is worked on that is larger than the model's images: its tiles, memory and time."""

import dataclasses
import datetime
import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vitdiff_jax.diffusion import Denoise
from vitdiff_jax.diffusion.shifted_tiles import ShiftedTiling, shifted
from vitdiff_jax.diffusion.tiles import Tick, Tiling, chunks, tiled
from vitdiff_jax.experiment.build import Experiment, config_errors
from vitdiff_jax.inference.sampling import batch_size, guided
from vitdiff_jax.operators import Shape
from vitdiff_jax.runtime import flops, memory

MOST = 2**30
"""Bytes of the network's intermediate results on a device, at most."""
OF_CORE = 20 * 2**20
"""The same for each CPU core. On two cores a 512 px picture took 1.08 times as long with three
tiles at a time as with nine (64 px, 4.2 million parameters), and 1.20 times with 32 as with 97
(32 px, 2.9 million; 2026-12-01)."""
OBSERVED = 3e10
"""FLOPs from which a program is observed, about a second on a CPU core. Programs with callbacks
are not kept in JAX's compilation cache."""


@dataclasses.dataclass(frozen=True)
class TilePlan:
    """The plan of a program.

    tiles: of a network call, at most; None: all. batch: images of a call of the program. calls: of
    the network per image. gradients: the number taken of each call; in chunks each repeats the
    call, see `tiles.tiled`. observed: whether the program reports its network calls and can be
    interrupted. devices: over which the batch is sharded.
    """

    tiling: Tiling | ShiftedTiling
    tiles: int | None
    batch: int
    calls: int
    steps: int
    gradients: int
    observed: bool
    devices: int

    def denoiser(
        self, denoise_of: Callable[[Any], Denoise], keys: jax.Array, cond: Any, tick: Tick
    ) -> Denoise:
        """See `tiles.tiled` and `shifted_tiles.shifted`."""
        how = (cond, self.tiles, tick if self.observed else None)
        if isinstance(self.tiling, ShiftedTiling):
            return shifted(denoise_of, self.tiling, keys, *how)
        return tiled(denoise_of, self.tiling, *how)

    @property
    def total(self) -> int:
        """What a call of the program counts up to."""
        if not self.observed:
            return 1
        number, _ = self.chunks
        return number * self.calls * (1 + self.gradients * (number > 1))

    @property
    def chunks(self) -> tuple[int, int]:
        """Network calls for all tiles of the images, and tiles in each."""
        tiles = self.batch * self.tiling.count
        return chunks(tiles, self.tiles or tiles, self.devices)

    def text(self, taken: int, seconds: float) -> str:
        """What the work is, in one line. taken: bytes."""
        (height, width), (h, w) = self.tiling.shape, self.tiling.tile
        _, at_once = self.chunks
        return (
            f"{width} x {height} pixels: {self.tiling.count:,} tiles of {w} x {h}, {at_once:,} at a"
            f" time; {self.steps} steps, {memory.text(taken)},"
            f" about {datetime.timedelta(seconds=round(seconds))}"
        )


def tiling_of(experiment: Experiment, shape: Shape) -> Tiling | ShiftedTiling:
    """The tiles of images of a shape, by config.restore.overlap."""
    tile, share = experiment.shape[:2], experiment.config.restore.overlap
    with config_errors("config.restore."):
        if not 0 <= share <= 0.9:
            raise ValueError(f"overlap: {share} is not in [0, 0.9]")
        if share:
            return Tiling(shape[:2], tile, int(share * min(tile)))
        return ShiftedTiling(shape[:2], tile)


def plan(
    experiment: Experiment, mesh: jax.sharding.Mesh, tiling: Tiling | ShiftedTiling, count: int,
    calls: int, steps: int, gradients: int, weights: Any, cond: Any,
) -> TilePlan:  # fmt: skip
    """The plan for `count` images. The rest: see `restoring.Program`."""
    config = experiment.config.restore
    tiles, images, work = config.tiles or None, config.batch, 0.0
    if tiling.count > 1:
        network = functools.partial(_network, experiment, gradients > 0, weights, cond)
        tiles = tiles or _at_once(network, mesh)
        images = max(1, min(images, tiles // tiling.count))  # no more than fill a network call
        work = count * calls * max(1, gradients) * tiling.count * network(1, flops.count)
    batch = batch_size(images, count, mesh)
    seen = work > OBSERVED and _calls_back()
    return TilePlan(tiling, tiles, batch, calls, steps, gradients, seen, mesh.size)


def _calls_back() -> bool:
    """Whether programs can call Python: JAX does so on a CPU, which JAX_PLATFORMS may leave out."""
    try:
        return bool(jax.local_devices(backend="cpu"))
    except RuntimeError:
        return False


def _network(experiment, gradient: bool, weights, cond, n: int, measure: Callable) -> Any:
    """measure(function, arguments) of the network, and its gradient, for n tiles."""
    denoise_of = guided(experiment, experiment.config.sample)

    def run(weights, x, t, cond):
        def total(x):
            return denoise_of(weights, cond)(x, t).sum()

        return jax.grad(total)(x) if gradient else denoise_of(weights, cond)(x, t)

    def rows(a):  # images are cut
        inner = (*experiment.shape[:2], *a.shape[3:]) if a.ndim == 4 else a.shape[1:]
        return jax.ShapeDtypeStruct((n, *inner), a.dtype)

    x = jax.ShapeDtypeStruct((n, *experiment.shape), np.float32)
    t = jax.ShapeDtypeStruct((n,), np.float32)
    return measure(run, weights, x, t, jax.tree.map(rows, cond))


def _at_once(network: Callable, mesh: jax.sharding.Mesh) -> int:
    """How many tiles are denoised at a time, on all devices: what memory and caches hold."""
    device, room = mesh.local_devices[0], MOST
    if (free := memory.free(device)) is not None:
        room = min(room, free // 4)
    if device.platform == "cpu":
        room = min(room, OF_CORE * (os.cpu_count() or 1) // mesh.size)
    of_tile = network(2, memory.of_arrays) - network(1, memory.of_arrays)
    return max(1, room // max(1, of_tile)) * mesh.size


def excess(taken: int, device: Any, shape: Shape) -> str:
    """Why a program does not fit into memory, which is planned before it is taken; "" if it does.

    taken: bytes per device. Most of it is a number of full-size images, so it grows with the
    number of pixels.
    """
    free = memory.free(device)
    if free is None or taken <= free:
        return ""
    pixels = math.floor(shape[0] * shape[1] * max(free, 0) / taken / 1e5) / 10
    return (
        f"{shape[1]} x {shape[0]} pixels take {memory.text(taken)} of memory, and"
        f" {memory.text(max(free, 0))} are free: enough for {pixels} megapixels; make the picture"
        " smaller, or cut it into parts"
    )
