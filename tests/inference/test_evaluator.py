"""Sets of images measured in one go or in several, and which samples are drawn for it."""

import numpy as np
import pytest

from tests import tiny
from vitdiff_jax.data import digits
from vitdiff_jax.data.pipeline import DataError
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.inference import evaluator
from vitdiff_jax.runtime import parallel


@pytest.fixture(scope="module")
def dataset():
    return digits.dataset()


def yard(workdir, dataset, **evaluate):
    evaluate = dict(metrics=("pixel_frechet",)) | evaluate
    settings = config_lib.complete(tiny.config(evaluate=evaluate))
    return evaluator.Evaluator(settings, workdir, parallel.make_mesh(), dataset)


def drawn(dataset, count, first=0, **evaluate):
    """What a model is asked for: [(conditions, seeds)] of each call, from image `first` on."""
    settings = config_lib.complete(tiny.config(evaluate=dict(seed=1000) | evaluate))
    asked = []

    def draw(cond, n, seed):
        asked.append((cond["label"], seed + np.arange(n)))
        return np.zeros((n, 8, 8, 1), np.uint8)

    sizes = [len(b.images) for b in evaluator.sampled(draw, settings, dataset, count)(first)]
    assert sizes == [len(labels) for labels, _ in asked]
    return (np.concatenate(parts) for parts in zip(*asked))


@pytest.mark.parametrize("labels", ["balanced", "prior"])
def test_image_i_is_the_same_wherever_drawing_starts(dataset, labels):
    """Batches of eight, the last of two: seed and label belong to the image's number."""
    found, seeds = drawn(dataset, 26, labels=labels)
    np.testing.assert_array_equal(seeds, 1000 + np.arange(26))
    for first in (5, 8, 24):
        later, seeds = drawn(dataset, 26, first, labels=labels)
        np.testing.assert_array_equal(later, found[first:])
        np.testing.assert_array_equal(seeds, 1000 + np.arange(first, 26))


def test_labels_are_balanced_or_those_of_the_held_out_images(dataset):
    held = dataset.heldout.labels
    balanced, _ = drawn(dataset, 25)
    np.testing.assert_array_equal(balanced, np.arange(25) % 10)
    prior, _ = drawn(dataset, len(held), labels="prior")
    np.testing.assert_array_equal(np.bincount(prior), np.bincount(held))
    assert (prior != held).any()  # few samples do not have the first classes only


def test_real_images_are_measured_once(tmp_path, dataset, monkeypatch):
    """A random part stands for all: the first ones may be of one class. Its state is kept."""
    first = yard(tmp_path, dataset)
    found = first.real("train", 100, first.parts)
    (part,) = first.parts
    pixels = dataset.train.images.reshape(-1, 64) / 127.5 - 1
    which = np.random.default_rng(0).choice(len(pixels), 100, replace=False)
    mean, covariance = found.found[part].gaussian()
    np.testing.assert_allclose(mean, pixels[which].mean(0), atol=1e-9)
    np.testing.assert_allclose(covariance, np.cov(pixels[which].T), atol=1e-9)
    monkeypatch.setattr(type(dataset.train), "example", None)  # nothing more is read
    again = yard(tmp_path, dataset)
    (same,) = again.real("train", 100, again.parts).found.values()
    np.testing.assert_array_equal(same.outer, found.found[part].outer)
    with pytest.raises(TypeError):
        again.real("train", 101, again.parts)


def test_what_was_kept_of_other_data_is_not_used(tmp_path, dataset):
    half = digits.dataset(0.5)
    first, other = yard(tmp_path, dataset), yard(tmp_path, half)
    counts = [y.real("train", None, y.parts).found[y.parts[0]].count for y in (first, other)]
    assert counts == [len(dataset.train), len(half.train)]


def test_no_floor_where_the_data_is_not_there(tmp_path, dataset, monkeypatch, capsys):
    """Statistics in a file are enough to measure; real images are not needed."""
    np.savez(
        tmp_path / "file.npz", mu=np.zeros(64), sigma=np.eye(64), about='{"network": "pixels"}'
    )

    def missing(config):
        raise DataError("it is not there")

    monkeypatch.setattr(evaluator.experiment_lib, "dataset", missing)
    with_file = yard(tmp_path, None, reference=str(tmp_path / "file.npz"))
    assert with_file.real_scores(30) is None
    assert with_file.crop() is None
    assert "no score of real images: it is not there" in capsys.readouterr().out
    with pytest.raises(DataError, match="it is not there"):
        yard(tmp_path, None).real_scores(30)
