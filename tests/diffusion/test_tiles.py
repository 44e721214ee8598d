"""Tiles against definitions, and against the whole image wherever that is the same mathematics."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parts import covering, only, quick
from vitdiff_jax.diffusion.guidance import guide
from vitdiff_jax.diffusion.tiles import Tiling, chunks, tiled

TILINGS = [
    Tiling((37, 53), (16, 20), 8),
    Tiling((31, 29), (16, 16), 0),
    Tiling((45, 16), (16, 16), 13),  # more than two tiles over a pixel, one column
    Tiling((17, 16), (16, 15), 5),
    Tiling((50, 41), (15, 13), 1),
    Tiling((16, 20), (16, 20), 4),
    Tiling((9, 40), (16, 16), 7),  # mirrored in one direction, cut in the other
    Tiling((5, 3), (16, 20), 8),  # mirrored several times
    Tiling((1, 1), (8, 8), 2),
]
QUICK = [TILINGS[0], TILINGS[2], TILINGS[7]]
each_tiling = pytest.mark.parametrize("tiling", quick(QUICK, TILINGS), ids=str)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- A second implementation: windows from their definition, one tile after the other ---


def window(starts, k, tile, size):
    """The weights of tile k along one axis: zero, smooth and one, as the module says."""
    values = np.ones(tile)
    for i in range(tile):
        for edge, away in ((k - 1, i), (k + 1, tile - 1 - i)):
            if 0 <= edge < len(starts):
                shared = tile - abs(starts[k] - starts[edge])
                margin = shared // 4
                if away < margin:
                    values[i] = 0
                elif away < shared - margin:
                    share = (away + 0.5 - margin) / (shared - 2 * margin)
                    values[i] *= (1 - np.cos(np.pi * share)) / 2
    return values


def starts_of(tiling, axis):
    """Read off the tiles of an image whose pixels are their own coordinates."""
    size, tile = max(tiling.shape[axis], tiling.tile[axis]), tiling.tile[axis]
    if size == tile:
        return [0]
    coordinate = np.arange(tiling.shape[axis], dtype=np.float32)
    x = np.broadcast_to(coordinate[:, None] if axis == 0 else coordinate, tiling.shape)
    corners = np.asarray(tiling.cut(jnp.asarray(x)[None, ..., None]))[:, 0, 0, 0]
    return sorted({int(corner) for corner in corners})


def mirrored(x, tiling):
    """Images as large as a tile at least, and where they are in it."""
    extra = [max(0, tile - size) for tile, size in zip(tiling.tile, tiling.shape)]
    first = [n // 2 for n in extra]
    pads = [(0, 0), *((a, n - a) for a, n in zip(first, extra)), (0, 0)]
    place = [slice(a, a + size) for a, size in zip(first, tiling.shape)]
    return np.pad(x, pads, mode="symmetric"), (slice(None), *place)


def brute_force(denoise, tiling, x, t):
    """denoise: (tile [h, w, C], t, image number, (slices of the tile)) -> [h, w, C]."""
    whole, place = mirrored(x, tiling)
    total, weights = np.zeros(whole.shape), np.zeros((*whole.shape[:3], 1))
    rows, columns = (starts_of(tiling, axis) for axis in (0, 1))
    (h, w), (height, width) = tiling.tile, whole.shape[1:3]
    for b, (i, top), (j, left) in itertools.product(
        range(len(x)), enumerate(rows), enumerate(columns)
    ):
        area = np.s_[top : top + h, left : left + w]
        weight = window(rows, i, h, height)[:, None, None] * window(columns, j, w, width)[:, None]
        total[b][area] += weight * np.asarray(denoise(whole[b][area], t[b], b, area))
        weights[b][area] += weight
    return (total / weights)[place]


# --- Where the tiles are ---


@each_tiling
def test_tiles_are_evenly_spread_flush_and_overlap_enough(tiling):
    for axis in (0, 1):
        starts, tile = starts_of(tiling, axis), tiling.tile[axis]
        size = max(tiling.shape[axis], tile)
        assert starts[0] == 0
        assert starts[-1] == size - tile
        steps = np.diff(starts)
        if len(steps):
            assert steps.max() - steps.min() <= 1
            assert tile - steps.max() >= tiling.overlap
            needed = (size - tile) / (tile - tiling.overlap)  # steps, if they could be fractions
            assert len(steps) == np.ceil(needed)
    assert tiling.count == len(starts_of(tiling, 0)) * len(starts_of(tiling, 1))


@each_tiling
def test_cut_gives_parts_of_the_image_image_by_image_and_row_by_row(tiling):
    x = noise(2, *tiling.shape, 3)
    whole, _ = mirrored(x, tiling)
    corners = itertools.product(range(2), starts_of(tiling, 0), starts_of(tiling, 1))
    h, w = tiling.tile
    wanted = np.stack([whole[b, top : top + h, left : left + w] for b, top, left in corners])
    np.testing.assert_array_equal(tiling.cut(jnp.asarray(x)), wanted)


@pytest.mark.parametrize(("precise", "atol"), [(False, 1e-6), (True, 1e-14)])
@each_tiling
def test_joining_what_was_cut_gives_the_image(tiling, precise, atol):
    """The weights are a partition of unity: constants and anything else come back."""
    with jax.enable_x64(precise):
        x = jnp.asarray(noise(2, *tiling.shape, 2), float)
        found = tiling.join(tiling.cut(x))
        assert found.dtype == x.dtype
        np.testing.assert_allclose(found, x, atol=atol)


def test_weights_are_zero_in_a_quarter_of_the_overlap_and_not_beyond():
    """Of 8 shared pixels, 2; on the image's own border, none."""
    tiling = Tiling((16, 28), (16, 18), 8)
    left, right = (tiling.join(jnp.eye(2)[k].reshape(2, 1, 1, 1) * jnp.ones((2, 16, 18, 1)))
                   for k in (0, 1))  # fmt: skip
    left, right = np.asarray(left)[0, :, :, 0], np.asarray(right)[0, :, :, 0]
    assert (left[:, :12] == 1).all()  # the second tile starts at 10 and counts from 12 on
    assert (np.diff(left[0, 11:17]) < 0).all()
    assert (left[:, 16:] == 0).all()
    np.testing.assert_allclose(left + right, 1, atol=1e-6)


# --- What is estimated ---


def clumsy(x, t, label, hint):
    """A denoiser that sees all of its tile: what it makes of a pixel depends on the tile."""
    away = jnp.sum(x, (1, 2), keepdims=True) * t[:, None, None, None]
    return jnp.tanh(x + 0.1 * jnp.cumsum(x, 2) + away) + label[:, None, None, None] * hint


@pytest.mark.parametrize(
    ("tiling", "batch"),
    only([(TILINGS[0], 3), (TILINGS[7], None)], itertools.product(TILINGS, [None, 3])),
    ids=str,
)
def test_tiled_is_the_weighted_mean_of_tiles(tiling, batch):
    """With a time, a label and a hint for each image, jitted, at once and in pieces."""
    x, hint = noise(2, *tiling.shape, 3), noise(2, *tiling.shape, 1, seed=1)
    t, label = np.array([0.2, 0.7], np.float32), np.array([1.0, -2.0], np.float32)
    hints, _ = mirrored(hint, tiling)

    def denoise_of(cond):
        return lambda x, t: clumsy(x, t, cond["label"], cond["hint"])

    @jax.jit
    def run(x, t, cond):
        return tiled(denoise_of, tiling, cond, batch)(x, t)

    one = jax.jit(clumsy)

    def alone(tile, t, b, area):
        return one(tile[None], t[None], label[b : b + 1], hints[b][area][None])[0]

    found = run(x, t, {"label": label, "hint": hint})
    np.testing.assert_allclose(found, brute_force(alone, tiling, x, t), atol=2e-5)


KERNELS = [0.3 * noise(3, 3, a, b, seed=i) for i, (a, b) in enumerate([(3, 8), (8, 3)])]


def local(mode):
    """A nonlinear denoiser that looks 2 pixels far, with borders of this kind."""

    def denoise(x, t):
        pads = [(0, 0), (2, 2), (2, 2), (0, 0)]
        x = jnp.pad(x, pads, mode=mode) * (1 - t[:, None, None, None])
        for kernel in KERNELS:
            x = jnp.tanh(jax.lax.conv_general_dilated(
                x, jnp.asarray(kernel), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ))  # fmt: skip
        return x

    return denoise


LOCAL = [
    (tiling, mode)
    for tiling in TILINGS
    for mode in ("constant", "reflect", "symmetric")
    if (tiling.overlap >= 8 or tiling.count == 1)
    and (mode == "symmetric" or all(a >= b for a, b in zip(tiling.shape, tiling.tile)))
]


@pytest.mark.parametrize(("tiling", "mode"), covering(LOCAL), ids=str)
def test_a_local_denoiser_does_not_notice_the_tiles(tiling, mode):
    """8 pixels of overlap are 2 of margin. Only a mirrored border is one for small images."""
    denoise = local(mode)
    x, t = noise(2, *tiling.shape, 3), jnp.array([0.1, 0.6])
    found = jax.jit(tiled(lambda _: denoise, tiling))(x, t)
    np.testing.assert_allclose(found, denoise(x, t), atol=1e-5)


def test_a_denoiser_that_looks_further_does_notice():
    """Or the test above would say nothing: 4 pixels of overlap are 1 of margin."""
    tiling, x, t = Tiling((37, 53), (16, 20), 4), noise(1, 37, 53, 3), jnp.array([0.1])
    denoise = local("constant")
    assert abs(tiled(lambda _: denoise, tiling)(x, t) - denoise(x, t)).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tiling", "batch"), covering(itertools.product([TILINGS[-2], TILINGS[0]], [None, 4])), ids=str
)
def test_derivatives_are_those_of_the_whole(tiling, batch):
    """Backwards (DPS, PiGDM) and forwards, at once and in pieces, jitted."""
    x, t, other = noise(2, *tiling.shape, 3), jnp.array([0.1, 0.6]), noise(2, *tiling.shape, 3)

    def derivatives(denoise):
        value, back = jax.vjp(lambda x: denoise(x, t), x)
        return value, back(other)[0], jax.jvp(lambda x: denoise(x, t), (x,), (other,))[1]

    denoise = local("symmetric")
    found = jax.jit(lambda: derivatives(tiled(lambda _: denoise, tiling, batch=batch)))()
    for a, b in zip(found, derivatives(denoise)):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_an_image_of_the_tiles_size_is_not_tiled():
    def denoise(x, t):
        return x

    cond = {"label": jnp.zeros(2)}

    def denoise_of(given):
        assert given is cond
        return denoise

    assert tiled(denoise_of, Tiling((16, 20), (16, 20), 4), cond) is denoise


# --- Pieces ---


@pytest.mark.parametrize("batch", quick([1, 5, 100], [1, 2, 5, 7, 23, 24, 100]))
def test_no_more_tiles_at_once_than_allowed(batch):
    """24 tiles, in as few pieces as needed, or up to a third more if less is filled up."""
    seen = []

    def denoise(x, t):
        seen.append(len(x))
        assert len(t) == len(x)
        return jnp.tanh(x) * t[:, None, None, None]

    tiling, x, t = Tiling((37, 40), (16, 20), 6), noise(2, 37, 40, 1), jnp.array([0.5, 0.9])
    assert tiling.count == 12
    found = tiled(lambda _: denoise, tiling, batch=batch)(x, t)
    (size,) = set(seen)
    assert size <= batch
    pieces, least = -(-24 // size), -(-24 // batch)
    assert least <= pieces <= least + least // 3
    assert pieces * size <= least * -(-24 // least)
    np.testing.assert_allclose(found, np.tanh(x) * t[:, None, None, None], atol=1e-6)


def test_guidance_runs_one_network_outside_of_its_interval():
    """Also in pieces: a vmapped `cond` would run both."""
    calls = []

    def network(name):
        def denoise(x, t):
            jax.debug.callback(lambda: calls.append(name))
            return x

        return denoise

    tiling, x = Tiling((16, 24), (16, 16), 8), noise(2, 16, 24, 1)
    guided = guide(network("told"), network("null"), 2.0, low=0.5)
    denoise = tiled(lambda _: guided, tiling, batch=2)
    jax.block_until_ready(denoise(x, jnp.full(2, 0.1)))
    jax.effects_barrier()
    assert calls == ["told"] * 2
    jax.block_until_ready(denoise(x, jnp.full(2, 0.9)))
    jax.effects_barrier()
    assert sorted(calls) == ["null"] * 2 + ["told"] * 4


def test_pieces_bound_the_memory_of_gradients():
    """What the compiler reserves: with a wide network, tiles kept for the way back are most."""
    tiling, t = Tiling((64, 64), (16, 16), 8), jnp.array([0.5])
    wider = jax.random.normal(jax.random.key(0), (2, 64))  # products, which no compiler fuses away

    def denoise(x, t):
        for _ in range(8):
            x = jnp.tanh(x @ wider) @ wider.T
        return x

    def memory(batch):
        gradient = jax.grad(lambda x: tiled(lambda _: denoise, tiling, batch=batch)(x, t).sum())
        compiled = jax.jit(gradient).lower(jnp.zeros((1, 64, 64, 2))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(7) < memory(None) / 5


# --- Seams ---


def smooth(x, t):
    """A denoiser that looks 6 pixels far, past a margin of 2, and sees black around its tile."""
    for axis in (1, 2):
        away = np.subtract.outer(*[np.arange(x.shape[axis])] * 2)
        line = np.where(abs(away) <= 6, np.exp(-0.5 * (away / 2) ** 2), 0).astype(np.float32)
        x = jnp.moveaxis(jnp.tensordot(line, x, (1, axis)), 0, axis)
    return jnp.tanh(x / 4) + 0.3 * jnp.sin(x)


def steps(x):
    """The mean squared difference between neighbours, [W - 1]."""
    return (np.diff(np.asarray(x, np.float64), axis=2) ** 2).mean((0, 1, 3))


def test_no_seams_where_tiles_meet():
    """Steps across the borders of tiles are as large as elsewhere, and nowhere are there others."""
    x, t = 0.3 + noise(200, 24, 96, 1), jnp.full(200, 0.5)
    whole, ratios = steps(smooth(x, t)), {}
    for overlap in (0, 8):
        tiling = Tiling((24, 96), (24, 24), overlap)
        starts = np.array(starts_of(tiling, 1))
        found = steps(jax.jit(tiled(lambda _: smooth, tiling))(x, t))
        at = np.zeros(95, bool)
        at[[*(starts[1:] - 1), *(starts[:-1] + 23)]] = True
        inner = slice(6, -6)  # the border of the image itself is another matter
        ratios[overlap] = found[inner][at[inner]].mean() / found[inner][~at[inner]].mean()
    assert ratios[0] > 3  # tiles side by side: such seams would be seen
    assert ratios[8] == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(found[inner], whole[inner], rtol=0.05)


# --- What cannot be ---


@pytest.mark.parametrize(
    ("shape", "tile", "overlap", "words"),
    [
        ((40, 40), (16, 20), 16, r"overlap: 16 is not in \[0, 15\]"),
        ((40, 40), (16, 20), -1, "overlap: -1 is not in"),
        ((0, 40), (16, 20), 4, "tile: cannot cut"),
        ((40, 40), (0, 20), 4, "tile: cannot cut"),
    ],
)
def test_impossible_tilings_are_refused(shape, tile, overlap, words):
    with pytest.raises(ValueError, match=words):
        Tiling(shape, tile, overlap)


def test_images_and_hints_of_another_size_are_refused():
    tiling = Tiling((40, 30), (16, 20), 4)
    with pytest.raises(ValueError, match=r"images of \(30, 40\) pixels"):
        tiling.cut(jnp.zeros((1, 30, 40, 3)))
    denoise = tiled(lambda _: lambda x, t: x, tiling, {"hint": jnp.zeros((1, 8, 8, 3))})
    with pytest.raises(ValueError, match=r"images of \(8, 8\) pixels"):
        denoise(jnp.zeros((1, 40, 30, 3)), jnp.zeros(1))
    with pytest.raises(ValueError, match="batch: 0 tiles"):
        tiled(lambda _: lambda x, t: x, tiling, batch=0)


def test_chunks_pad_least():
    assert chunks(81, 12) == (9, 9)
    assert chunks(84, 12) == (7, 12)
    assert chunks(5, 8) == chunks(5, 8, 4) == (1, 5)
    assert chunks(36, 8, 4) == (5, 8)  # 6 of 6 would pad none, but do not divide by devices
    assert chunks(20, 7, 4) == (5, 4)
