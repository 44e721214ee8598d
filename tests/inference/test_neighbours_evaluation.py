"""References of a single image, as small folders hold out: said before anything is sampled."""

import dataclasses
import warnings

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
        yard(tmp_path, dataset).check_reference()
    yard(tmp_path, dataset, reference="train").check_reference()


def test_one_image_has_no_score_and_the_rest_is_there(tmp_path, dataset, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert yard(tmp_path, dataset, reference="train").real_scores(16) is None
    assert "no score of real images: too few held-out images" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"x", b"", b"<!doctype html>", b"PK\x03\x04"])
def test_a_reference_that_is_no_npz_file(tmp_path, dataset, content):
    """NumPy's own advice, to allow pickles, is none to follow."""
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz: not a readable \.npz file: no zip archive"):
        yard(tmp_path, dataset, reference=str(tmp_path / "a.npz"))
