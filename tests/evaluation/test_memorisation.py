"""Copies of training images are found by distances that a plain loop gives too."""

import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from tests import tiny
from vitdiff_jax.data import digits, pipeline
from vitdiff_jax.evaluation import memorisation
from vitdiff_jax.inference import sampling
from vitdiff_jax.runtime import logs
from vitdiff_jax.training import monitor

RATIO = 1 / 3  # Yoon et al., 2023


def noise(count, shape=(6, 7, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def source(images):
    return pipeline.InMemory(images, np.zeros(len(images), np.int32))


def brute_force(samples, images):
    """(nearest image, distances to the two nearest) of each sample, by the definition."""
    nearest, distances = [], []
    for one in samples.astype(np.float64):
        both = [
            min(np.mean((one - other) ** 2), np.mean((one[:, ::-1] - other) ** 2)) ** 0.5
            for other in images.astype(np.float64)
        ]
        order = np.argsort(both, kind="stable")
        nearest.append(images[order[0]])
        distances.append([both[order[0]], both[order[1]]])
    return np.stack(nearest), np.array(distances).T


@pytest.mark.parametrize("count", [2, 63, 64, 65, 200])  # in parts of 64
@pytest.mark.parametrize("shape", [(6, 7, 3), (4, 4, 1)])
def test_distances_are_those_of_a_plain_search(count, shape):
    images, samples = noise(count, shape), noise(9, shape, seed=1)
    samples[:4] = np.clip(images[[0, 1, -2, -1]].astype(int) + 9, 0, 255)
    found = memorisation.compare(samples, source(images))
    nearest, (first, second) = brute_force(samples, images)
    np.testing.assert_array_equal(found.images, nearest)
    np.testing.assert_allclose(found.first, first, rtol=1e-4)
    np.testing.assert_allclose(found.second, second, rtol=1e-4)
    np.testing.assert_array_equal(found.memorised, first < RATIO * second)


def test_large_images_do_not_lose_the_digits_of_small_distances():
    """Squares of 200,000 pixels are 10^10: differences of them in float32 are rounded."""
    images = noise(3, (256, 256, 3))
    samples = images[:1].copy()
    samples[0, :, ::2] ^= 4
    found = memorisation.compare(np.concatenate([samples, images[:1]]), source(images))
    _, (first, second) = brute_force(samples, images)
    np.testing.assert_allclose(found.first[0], first[0], atol=0.1)
    np.testing.assert_allclose(found.first[1], 0, atol=0.3)
    np.testing.assert_allclose(found.second[0], second[0], atol=0.1)
    assert found.memorised.all()


@pytest.mark.parametrize("flipped", [False, True])
def test_copies_are_found_and_noise_is_not(flipped):
    images = noise(100)
    copies = images[[3, 97]][:, :, :: -1 if flipped else 1]
    samples = np.concatenate([noise(20, seed=1), copies])
    found = memorisation.compare(samples, source(images))
    np.testing.assert_array_equal(found.memorised, [False] * 20 + [True] * 2)
    np.testing.assert_array_equal(found.images[-2:], images[[3, 97]])
    np.testing.assert_allclose(found.first[-2:], 0, atol=0.1)
    assert memorisation.summary(found).startswith("2 of 22 samples look like copies of a training")


def test_examples_are_compared_as_they_are():
    """Without augmentation: a source that is given random numbers would be another."""

    class Plain(pipeline.InMemory):
        def example(self, index, rng=None):
            assert rng is None
            return super().example(index)

    images = noise(70)
    found = memorisation.compare(images[:3], Plain(images, np.zeros(70, np.int32)))
    assert found.memorised.all()


def test_the_picture_shows_pairs_the_likeliest_copy_first():
    samples, images = noise(5, (50, 60, 3)), noise(5, (50, 60, 3), seed=1)
    ratio = np.array([0.9, 0.1, 0.5, 0.0, 0.7])
    nearest = memorisation.Nearest(images, ratio * 8, np.full(5, 8.0))
    sheet = memorisation.sheet(samples, nearest).pixels
    columns, gutter = 2, 2  # pairs are twice as wide as high
    assert sheet.shape == (3 * 52 + 2, columns * (120 + gutter) + gutter, 3)
    for place, i in enumerate([3, 1, 2, 4, 0]):
        top, left = 2 + place // columns * 52, 2 + place % columns * 122
        np.testing.assert_array_equal(sheet[top : top + 50, left : left + 60], samples[i])
        np.testing.assert_array_equal(sheet[top : top + 50, left + 60 : left + 120], images[i])


@pytest.mark.parametrize("copies", [1, 0])
def test_training_warns_of_copies(tmp_path, monkeypatch, capsys, copies):
    """The "model" draws noise, and in its second place a training image, mirrored."""
    images = digits.dataset().train.images

    def make_sample_fn(*_):
        def draw(params, seeds, cond):
            assert len(seeds) == len(cond["label"]) == 4
            drawn = noise(4, (8, 8, 1))
            drawn[1 : 1 + copies] = images[7, :, ::-1]
            return drawn

        return draw

    monkeypatch.setattr(sampling, "make_sample_fn", make_sample_fn)
    workdir = epath.Path(tmp_path)
    run = tiny.run(tiny.config(log=dict(nearest_every=2, images=4)), workdir)
    watch = monitor.Monitor(run.config, workdir, run.dataset, run.experiment, run.mesh)
    metrics = logs.Metrics(workdir, 0, 3, 8, 0.0)
    for step in (1, 2, 3):
        watch.after_step(step, {watch.ema: {}}, metrics, last=step == 3)
    metrics.close()
    said = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"]: line["memorised"] for line in lines if "memorised" in line} == {
        2: copies / 4, 3: copies / 4,
    }  # fmt: skip
    pictures = {path.name for path in workdir.glob("samples/*")}
    if not copies:
        assert (said, pictures) == ([], set())
        return
    assert pictures == {"00000002-nearest.png", "00000003-nearest.png"}
    assert len(said) == 2
    assert "warning: 1 of 4 samples look like copies of a training image" in said[0]
    assert "samples/00000002-nearest.png" in said[0]
    with Image.open(workdir / "samples" / "00000002-nearest.png") as sheet:
        pixels = np.asarray(sheet)[..., None] if sheet.mode == "L" else np.asarray(sheet)
    enlarged = images[7].repeat(6, 0).repeat(6, 1)  # 48 pixels at least
    np.testing.assert_array_equal(pixels[2:50, 2:50], enlarged[:, ::-1])
    np.testing.assert_array_equal(pixels[2:50, 50:98], enlarged)
