"""Tiles that lie elsewhere in each call: their places, what they estimate, how they count."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parts import only, quick
from vitdiff_jax import restoration
from vitdiff_jax.diffusion import nth_call, schedules
from vitdiff_jax.diffusion.shifted_tiles import ShiftedTiling, shifted
from vitdiff_jax.operators import mask
from vitdiff_jax.samplers import ancestral

TILINGS = [
    ShiftedTiling((37, 53), (16, 20)),
    ShiftedTiling((32, 60), (16, 20)),  # multiples of the tile
    ShiftedTiling((17, 21), (16, 20)),  # one pixel more
    ShiftedTiling((45, 16), (16, 16)),  # one column
    ShiftedTiling((9, 40), (16, 16)),  # mirrored in one direction, cut in the other
    ShiftedTiling((5, 3), (16, 20)),  # mirrored several times
]
KEYS = jax.random.split(jax.random.key(7), 3)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def starts(size, tile, n, offset):
    """Where the tiles begin: side by side from the offset on, the outermost moved inwards."""
    return [min(max(offset + (k - 1) * tile, 0), max(size, tile) - tile) for k in range(n)]


def all_offsets(tiling):
    """Each offset of an axis, with some of the other."""
    h, w = tiling.tile
    pairs = {(1 + i % h, 1 + i % w) for i in range(max(h, w))} | {(1, w), (h, 1)}
    return jnp.array(sorted(pairs))


def parts(tiling, offsets, x, numbers):
    at = tiling.at(offsets)
    return at.cut(x), at.join(numbers)


each_tiling = pytest.mark.parametrize("tiling", quick([TILINGS[0], TILINGS[5]], TILINGS), ids=str)


@each_tiling
def test_each_pixel_is_in_one_whole_tile_of_the_picture(tiling):
    """At every offset; what stands in a tile is what stands there in the picture."""
    offsets = all_offsets(tiling)
    x = np.broadcast_to(noise(1, *tiling.shape, 2), (len(offsets), *tiling.shape, 2))
    # Tiles full of their number show whose estimate a pixel has.
    numbers = np.tile(np.arange(tiling.count, dtype=np.float32), len(offsets))
    numbers = np.broadcast_to(numbers[:, None, None, None], (len(numbers), *tiling.tile, 1))
    tiles, owner = map(np.asarray, jax.jit(parts, static_argnums=0)(tiling, offsets, x, numbers))
    assert len(tiles) == len(offsets) * tiling.count
    extra = [max(0, a - b) for a, b in zip(tiling.tile, tiling.shape)]
    pads = [(0, 0), *((n // 2, n - n // 2) for n in extra), (0, 0)]
    whole = np.pad(x, pads, mode="symmetric")
    (h, w), found = tiling.tile, iter(tiles)
    for b, offset in enumerate(np.asarray(offsets)):
        places = [starts(*axis) for axis in zip(tiling.shape, tiling.tile, tiling.grid, offset)]
        for top, left in itertools.product(*places):
            np.testing.assert_array_equal(next(found), whole[b, top : top + h, left : left + w])
    assert (owner == owner.round()).all()
    for b, (down, right) in enumerate(np.asarray(offsets)):
        for lines, offset, size, tile in (
            (owner[b, :, 0, 0], down, tiling.shape[0], h),
            (owner[b, 0, :, 0], right, tiling.shape[1], w),
        ):  # fmt: skip
            borders = 1 + np.flatnonzero(np.diff(lines))
            inside = range(offset, size, tile) if size > tile else ()
            np.testing.assert_array_equal(borders, inside)


@each_tiling
def test_joining_what_was_cut_gives_the_picture(tiling):
    offsets = all_offsets(tiling)
    x = jnp.asarray(noise(len(offsets), *tiling.shape, 2))

    @jax.jit
    def there_and_back(x):
        at = tiling.at(offsets)
        return at.join(at.cut(x))

    np.testing.assert_array_equal(there_and_back(x), x)


@pytest.mark.parametrize(
    ("tiling", "batch"),
    only([(TILINGS[0], 5), (TILINGS[5], None)], itertools.product(TILINGS, [None, 5])),
    ids=str,
)
def test_a_denoiser_of_single_pixels_does_not_notice_the_tiles(tiling, batch):
    """Its value and gradient, with a time, a label and a hint for each image."""
    x, hint = noise(3, *tiling.shape, 2), noise(3, *tiling.shape, 1, seed=1)
    t, label = jnp.array([0.2, 0.7, 0.7]), jnp.array([1.0, -2.0, 0.5])

    def denoise_of(cond):
        def denoise(x, t):
            t, label = (a[:, None, None, None] for a in (t, cond["label"]))
            return jnp.tanh(x * t + cond["hint"] * label)

        return denoise

    cond = {"label": label, "hint": jnp.asarray(hint)}

    def value_and_gradient(denoise):
        value, back = jax.vjp(lambda x: denoise(x, t), x)
        return value, back(x)[0]

    found = jax.jit(lambda: value_and_gradient(shifted(denoise_of, tiling, KEYS, cond, batch)))()
    for a, b in zip(found, value_and_gradient(denoise_of(cond))):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_offsets_are_even_and_of_the_key_the_time_and_the_call_alone():
    tiling = TILINGS[0]
    offsets = jax.jit(tiling.offsets)
    many = np.asarray(offsets(jnp.repeat(KEYS[:1], 3000), jnp.linspace(0, 1, 3001)[1:], 0))
    for axis, tile in enumerate(tiling.tile):
        counts = np.bincount(many[:, axis], minlength=tile + 1)
        assert counts[0] == 0
        assert len(counts) == tile + 1
        expected = 3000 / tile
        assert ((counts[1:] - expected) ** 2 / expected).sum() < tile + 5 * math.sqrt(2 * tile)
    same, times = np.asarray(offsets(KEYS, jnp.full(3, 0.5), 0)), jnp.array([0.5, 0.1, 0.2])
    np.testing.assert_array_equal(offsets(KEYS[:1], jnp.array([0.5]), 0), same[:1])  # alone
    np.testing.assert_array_equal(offsets(KEYS, times, 0)[0], same[0])  # beside others
    calls = [tuple(np.asarray(offsets(KEYS, jnp.full(3, 0.5), i)).ravel()) for i in range(9)]
    assert len(set(calls)) == 9
    assert len({tuple(one) for one in same}) == 3


METHODS = {name: found for name, found in restoration.methods().items() if not found.TRAITS.hint}


QUICK = ("ddrm", "pnpflow")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in METHODS]
)
def test_each_call_of_a_method_has_places_of_its_own(name, monkeypatch):
    """Of all methods, also of those that call the network several times at one t."""
    seen, plain = [], ShiftedTiling.offsets

    def offsets(self, keys, t, i):
        jax.debug.callback(lambda t, i: seen.append((float(t[0]), int(i))), t, i)
        return plain(self, keys, t, i)

    monkeypatch.setattr(ShiftedTiling, "offsets", offsets)
    shape, schedule = (12, 10, 1), schedules.RectifiedFlow()
    x, keys = jnp.asarray(noise(1, *shape)), KEYS[:1]
    operator = mask.Mask(jnp.ones((*shape[:2], 1)).at[2:4].set(0), shape[2])
    denoise = shifted(lambda _: lambda x, t: 0.5 * x, ShiftedTiling(shape[:2], (8, 8)), keys)
    times = np.linspace(1, 0, 4)
    METHODS[name].restore(
        denoise, schedule, times, x, keys, operator=operator, y=operator.forward(x), noise_std=0.1
    )
    jax.effects_barrier()
    assert len(seen) >= 3
    assert len(set(seen)) == len(seen)


def test_other_denoisers_do_not_know_calls():
    def denoise(x, t):
        return x

    assert nth_call(denoise, 3) is denoise


def test_an_image_depends_on_its_own_key_alone():
    """Through a sampler, with a denoiser that sees all of its tile, to the last bits."""
    tiling, times = ShiftedTiling((21, 30), (8, 8)), np.linspace(1, 0, 6)
    x = jnp.asarray(noise(3, *tiling.shape, 1))

    def clumsy(x, t):
        return jnp.tanh(x + 0.1 * jnp.cumsum(x, 2) + x.sum((1, 2), keepdims=True))

    @jax.jit
    def run(x, keys):
        denoise = shifted(lambda _: clumsy, tiling, keys, None, 5)
        return ancestral.sample(denoise, schedules.RectifiedFlow(), times, x, keys)

    together = run(x, KEYS)
    for i in range(3):
        np.testing.assert_allclose(run(x[i : i + 1], KEYS[i : i + 1])[0], together[i], atol=1e-5)
    other = run(x, KEYS[::-1])
    assert abs(other[0] - together[0]).max() > 1e-3


def test_borders_between_tiles_stay_nowhere():
    """The mean over calls of a denoiser that marks the border of its tile is even."""
    tiling, size = ShiftedTiling((8, 96), (24, 24)), 1000

    def marks(x, t):
        return jnp.zeros_like(x).at[:, :, -1].set(1)

    x, keys = jnp.zeros((size, 8, 96, 1)), jax.random.split(jax.random.key(0), size)
    found = jax.jit(
        lambda x: shifted(lambda _: marks, tiling, keys)(x, jnp.full(size, 0.5)).mean(0)
    )(x)
    inner = np.asarray(found)[0, 24:-1, 0]  # the first and the last tile are moved inwards
    assert abs(inner - 1 / 24).max() < 6 * math.sqrt(1 / 24 / size)


def test_ticks_are_the_network_calls():
    """Also in a loop, and in the gradient, where the forward pass is repeated."""
    tiling, t, ticks = ShiftedTiling((37, 40), (16, 20)), jnp.array([0.5]), []
    denoise = shifted(lambda _: lambda x, t: jnp.sin(x), tiling, KEYS[:1], None, 4, ticks.append)
    chunks = -(-tiling.count // 4)
    x = jnp.ones((1, 37, 40, 1))

    def counted(function):
        ticks.clear()
        jax.block_until_ready(jax.jit(function)(x))
        jax.effects_barrier()
        return len(ticks)

    assert counted(lambda x: jax.lax.fori_loop(0, 5, lambda i, x: denoise(x, t), x)) == 5 * chunks
    assert counted(jax.grad(lambda x: denoise(x, t).sum())) == 2 * chunks


def test_an_image_of_the_tiles_size_is_not_tiled():
    def denoise(x, t):
        return x

    tiling = ShiftedTiling((16, 20), (16, 20))
    assert shifted(lambda cond: denoise, tiling, KEYS) is denoise
    assert tiling.count == 1


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="tile: cannot cut"):
        ShiftedTiling((0, 40), (16, 20))
    tiling = ShiftedTiling((40, 30), (16, 20))
    with pytest.raises(ValueError, match=r"images of \(30, 40\) pixels"):
        tiling.at(jnp.ones((1, 2), int)).cut(jnp.zeros((1, 30, 40, 3)))
    with pytest.raises(ValueError, match="batch: 0 tiles"):
        shifted(lambda _: lambda x, t: x, tiling, KEYS, batch=0)
