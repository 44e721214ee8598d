"""The patch grid: steps across borders and spectra, by hand and by FFT, and the band by chance."""

import numpy as np
import pytest

from vitdiff_jax.evaluation import patch_grid
from vitdiff_jax.evaluation.metric import Batch, Measured, Setting


def metric_of(patch):
    return patch_grid.Metric(Setting(lambda: None, None, patch=patch))


def accumulated(metric, images):
    found = Measured(metric.parts, len(images))
    found.update(Batch(images))
    return found.of(metric)


def compared(patch, samples, real):
    metric = metric_of(patch)
    return metric.result(accumulated(metric, samples), accumulated(metric, real))


def mean_row(patch, images):
    """(steps across borders, elsewhere, energy at multiples, energy of all) on average."""
    return accumulated(metric_of(patch), images)[0].gaussian()[0][:4]


def staircase(height, width, patch, inside, border):
    """Rises by `inside` from pixel to pixel, by `border` across the borders of patches; [1, ..]."""

    def axis(length):
        steps = [border if i % patch == 0 else inside for i in range(1, length)]
        return np.cumsum([0, *steps])

    return (axis(height)[:, None] + axis(width))[None, :, :, None].astype(np.uint8)


def noise(count, height, width, channels=1, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, height, width, channels), np.uint8)


@pytest.mark.parametrize(("height", "width", "patch"), [(8, 8, 2), (8, 8, 4), (12, 6, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_steps_of_a_known_height(height, width, patch, channels):
    """Squared by hand: 5 across borders, 2 elsewhere."""
    images = staircase(height, width, patch, 2, 5).repeat(2, 0).repeat(channels, 3)
    assert mean_row(patch, images)[:2].tolist() == [25, 4]
    even = staircase(height, width, patch, 3, 3).repeat(2, 0).repeat(channels, 3)
    assert compared(patch, images, even)["value"] == pytest.approx(25 / 4)


def test_an_axis_of_a_single_patch_does_not_count():
    """It has no borders: only the steps along the other one are compared."""
    images = staircase(4, 8, 4, 2, 5)
    assert mean_row(4, images.repeat(2, 0))[:2].tolist() == [25, 4]
    along = mean_row(4, np.concatenate([images, images]))
    images = images + 40 * np.arange(4, dtype=np.uint8)[:, None, None]  # rows of other brightness
    np.testing.assert_array_equal(mean_row(4, np.concatenate([images, images])), along)


@pytest.mark.parametrize("shape", [(32, 32, 1), (16, 32, 3)])
def test_noise_and_smooth_images_have_no_grid(shape):
    """Waves of any direction and phase, and noise, beside noise of another seed."""
    random = np.random.default_rng(1)
    frequency = random.uniform(-0.6, 0.6, (2000, 2, 1, 1))
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    phase = frequency[:, 0] * rows + frequency[:, 1] * columns + random.uniform(0, 7, (2000, 1, 1))
    waves = np.repeat((128 + 100 * np.sin(phase)).astype(np.uint8)[..., None], shape[2], 3)
    real = noise(2000, *shape, seed=2)
    assert compared(4, noise(2000, *shape), real)["value"] == pytest.approx(1, abs=0.01)
    assert compared(4, waves, real)["value"] == pytest.approx(1, abs=0.03)


def by_fft(images, patch):
    """Energy at multiples of the patch frequency and in all, along rows and columns, with NumPy."""
    multiples = everything = 0.0
    for axis in (1, 2):
        if (length := images.shape[axis]) > patch:
            power = abs(np.fft.fft(images.astype(float), axis=axis, norm="ortho")) ** 2
            power = np.moveaxis(power, axis, 0)[1:].sum((1, 2, 3))
            everything += power.sum()
            multiples += power[length // patch - 1 :: length // patch].sum()
    return multiples / len(images), everything / len(images)


@pytest.mark.parametrize(("height", "width", "patch"), [(12, 6, 3), (8, 16, 4), (4, 12, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_energies_are_those_of_an_fft(height, width, patch, channels):
    images = noise(5, height, width, channels)
    np.testing.assert_allclose(mean_row(patch, images)[2:], by_fft(images, patch))


def test_energy_of_a_comb_is_all_at_the_patch_frequency():
    comb = np.zeros((2, 16, 32, 1), np.uint8)
    comb[:, ::4, ::4] = 200
    multiples, everything = mean_row(4, comb)[2:]
    assert multiples == everything > 0
    stripes = np.broadcast_to(np.arange(32) // 4 % 2 * 200, (2, 16, 32))[..., None]
    multiples, everything = mean_row(4, stripes.astype(np.uint8))[2:]
    assert multiples == 0 < everything  # a period of two patches, and its odd harmonics


def test_energy_of_noise_is_the_fraction_of_frequencies():
    """3 of 15 along columns, 3 of 31 along rows: 3 (16 + 32) of 15 * 32 + 31 * 16."""
    multiples, everything = mean_row(4, noise(4000, 16, 32))[2:]
    fraction = 3 * (16 + 32) / (15 * 32 + 31 * 16)
    assert multiples / everything == pytest.approx(fraction, rel=0.01)


def test_a_shift_by_a_pixel_moves_the_steps_but_not_the_spectrum():
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (50, 8, 8, 1), np.uint8).repeat(4, 1).repeat(4, 2)
    shifted = np.roll(blocks, (1, 1), (1, 2))
    before, after = mean_row(4, blocks), mean_row(4, shifted)
    assert before[0] > 0
    assert before[1] == 0
    assert after[0] == 0
    assert after[1] > 0
    np.testing.assert_allclose(after[2:], before[2:])


def unlike(count, seed):
    """Waves of all contrasts, some with a grid: their ratios differ much."""
    random = np.random.default_rng(seed)
    images = noise(count, 8, 8, seed=seed) * random.uniform(0, 0.5, (count, 1, 1, 1))
    grid = random.integers(0, 2, (count, 1, 1, 1)) * (np.arange(8) // 4 * 40)[:, None]
    return (images + grid).astype(np.uint8)


def test_the_band_is_that_of_random_groups_of_real_images():
    real, metric = unlike(4000, 0), metric_of(4)
    random = np.random.default_rng(1)
    rows = metric.parts[0].extractor(Batch(real))["grid"]

    def ratios(count):
        groups = rows[random.integers(0, len(rows), (2000, count))].mean(1)
        return np.log(groups[:, 0] / groups[:, 1])

    found = metric.result(accumulated(metric, real[:200]), accumulated(metric, real[:800]))
    spread = (ratios(200) - ratios(800)).std()
    assert np.log(found["high"]) == pytest.approx(3 * spread, rel=0.1)
    assert found["low"] == pytest.approx(1 / found["high"])


def test_a_band_narrows_with_the_number_of_samples():
    real = unlike(2000, 0)
    wide, narrow = (compared(4, unlike(count, 1), real) for count in (100, 1600))
    assert all(found["low"] <= found["value"] <= found["high"] for found in (wide, narrow))
    widths = [np.log(found["high"]) ** 2 for found in (wide, narrow)]
    assert widths[0] / widths[1] == pytest.approx((1 / 100 + 1 / 2000) / (1 / 1600 + 1 / 2000))


def test_samples_without_steps_elsewhere():
    """Blocks have an infinite ratio, and what is constant has none."""
    real, blocks = noise(9, 8, 8), noise(9, 2, 2).repeat(4, 1).repeat(4, 2)
    assert compared(4, blocks, real)["value"] == np.inf
    found = compared(4, np.zeros((9, 8, 8, 1), np.uint8), real)
    assert np.isnan([found["value"], found["energy"]]).all()


@pytest.mark.parametrize(
    ("patch", "shape", "why"),
    [
        (8, (8, 8, 1), "a patch is the whole image"),
        (1, (8, 8, 1), "a patch is one pixel"),
        (3, (8, 9, 1), "patches of 3 pixels do not divide the 8x9 images"),
        (16, (8, 8, 3), "patches of 16 pixels do not divide the 8x8 images"),
    ],
)
def test_images_that_have_no_borders_to_compare(patch, shape, why):
    metric = metric_of(patch)
    with pytest.raises(ValueError, match=f"^patch_grid: {why}"):
        metric.check(shape)
    with pytest.raises(ValueError, match=f"^patch_grid: {why}"):
        metric.parts[0].extractor(Batch(np.zeros((2, *shape), np.uint8)))


def test_what_has_no_patches_or_nothing_to_compare_with():
    with pytest.raises(ValueError, match="patch_grid needs a model with patches"):
        metric_of(None)
    with pytest.raises(ValueError, match="4px: samples are 8x8 pixels, real images 16x8"):
        compared(4, noise(3, 8, 8), noise(3, 16, 8))
    with pytest.raises(ValueError, match="real images are too plain"):
        compared(4, noise(3, 8, 8), np.ones((3, 8, 8, 1), np.uint8))


def test_chunks_make_no_difference(monkeypatch):
    images, extractor = noise(7, 8, 12, 3), patch_grid.Extractor(4)
    whole = extractor(Batch(images))["grid"]
    monkeypatch.setattr(patch_grid, "CHUNK", 3)
    np.testing.assert_array_equal(extractor(Batch(images))["grid"], whole)
