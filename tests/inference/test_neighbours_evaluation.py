"""References that cannot be compared with, and samples: said before anything is sampled."""

import dataclasses
import warnings

import numpy as np
import pytest

from tests import tiny
from vitdiff_jax.data import digits
from vitdiff_jax.data.pipeline import DataError, InMemory
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment.rules import ConfigError
from vitdiff_jax.inference import evaluator
from vitdiff_jax.runtime import parallel


@pytest.fixture(scope="module")
def dataset():
    """40 digits to train on and one held out."""
    found = digits.dataset()
    train, rest = (
        InMemory(part.images[:count], part.labels[:count])
        for part, count in ((found.train, 40), (found.heldout, 1))
    )
    return dataclasses.replace(found, train=train, heldout=rest)


def yard(workdir, dataset, **evaluate):
    settings = config_lib.complete(
        tiny.config(evaluate=dict(metrics=("pixel_frechet",)) | evaluate)
    )
    return evaluator.Evaluator(settings, workdir, parallel.make_mesh(), dataset)


def test_one_image_is_no_reference(tmp_path, dataset):
    with pytest.raises(ConfigError, match=r"reference: heldout: 1 held-out image is too few"):
        yard(tmp_path, dataset).check_reference((8, 8, 1))
    yard(tmp_path, dataset, reference="train").check_reference((8, 8, 1))


def test_one_image_has_no_score_and_the_rest_is_there(tmp_path, dataset, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert yard(tmp_path, dataset, reference="train").real_scores(16) is None
    assert "no score of real images: too few held-out images" in capsys.readouterr().out


STATISTICS = dict(mu=np.zeros(5), sigma=np.eye(5))
NOISE = np.random.default_rng(0).integers(0, 256, (9, 8, 16, 1), np.uint8)
WIDE, SQUARE = dict(arr_0=NOISE), dict(arr_0=NOISE[:, :, :8])


@pytest.mark.parametrize(
    ("metric", "arrays", "why"),
    [
        ("patch_grid", STATISTICS, "patch-grid-4; use config.evaluate.reference=train or heldout"),
        ("pixel_frechet", STATISTICS, "needs pixels; use config.evaluate.reference=train or"),
        ("patch_grid", WIDE, "patch_grid/4px: samples are 8x8 pixels, real images 8x16"),
        ("pixel_frechet", WIDE, r"have shape \(8, 8, 1\), real images \(8, 16, 1\)"),
        ("class_accuracy", SQUARE, "class_accuracy needs the class labels of the images"),
        ("pixel_frechet", dict(arr_0=NOISE[:1, :, :8]), "npz: 1 image is too few"),
        ("patch_grid", SQUARE, None), ("pixel_frechet", SQUARE, None),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_compared_with(tmp_path, dataset, metric, arrays, why):
    np.savez(tmp_path / "a.npz", **arrays)
    made = yard(tmp_path, dataset, reference=str(tmp_path / "a.npz"), metrics=(metric,))
    if why is None:
        made.check_reference((8, 8, 1))
        return
    with pytest.raises((ConfigError, DataError), match=why):
        made.check_reference((8, 8, 1))


def test_real_images_that_cannot_be_compared_cost_no_report(tmp_path, dataset, capsys):
    np.savez(tmp_path / "a.npz", arr_0=NOISE)
    how = dict(reference=str(tmp_path / "a.npz"), metrics=("patch_grid",))
    several = dataclasses.replace(dataset, heldout=dataset.train)
    assert yard(tmp_path, several, **how).real_scores(16) is None
    said = "no score of real images: config.evaluate.metrics: patch_grid/4px: samples are 8x8"
    assert said in capsys.readouterr().out


def test_samples_that_give_no_number():
    (line,) = evaluator.outside({"patch_grid/4px": dict(value=np.nan, low=0.9, high=1.1)})
    assert line == "patch_grid/4px: no number, for the samples have no steps within patches"


@pytest.mark.parametrize("content", [b"x", b"", b"<!doctype html>", b"PK\x03\x04"])
def test_a_reference_that_is_no_npz_file(tmp_path, dataset, content):
    """NumPy's own advice, to allow pickles, is none to follow."""
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz: not a readable \.npz file: no zip archive"):
        yard(tmp_path, dataset, reference=str(tmp_path / "a.npz"))
