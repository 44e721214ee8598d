"""Inception Scores where they are known, and against a plain version of ADM's."""

import types

import numpy as np
import pytest

from vitdiff_jax.evaluation import inception_score
from vitdiff_jax.evaluation.inception_score import SPLITS, Scores

METRIC = inception_score.Metric(types.SimpleNamespace(shared=lambda make, key=None: None))


def score(logits, batch=64):
    scores = Scores(len(logits))
    for i in range(0, len(logits), batch):
        scores.update(logits[i : i + batch])
    return METRIC.result([scores], [])


@pytest.mark.parametrize("logits", [[-1e4] * 7, [0] * 7, [50] * 7, [2000, 0, -90, 3]], ids=str)
def test_equal_predictions_score_one(logits):
    """Also where exp of the logits would overflow or be nothing: only different images score."""
    result = score(np.tile(np.float32(logits), (30, 1)))
    assert result == pytest.approx({"value": 1, "std": 0, "adm_splits_of_5000": 1}, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 5])
def test_separated_classes_score_their_number(classes):
    """All certain and as frequent; what has no probability at all adds nothing."""
    logits = 2000.0 * np.eye(classes)[np.arange(40 * classes) % classes]
    assert score(logits)["adm_splits_of_5000"] == pytest.approx(classes, rel=1e-9)


def by_adm(logits, size):
    """The mean over consecutive parts, as guided-diffusion's evaluator computes it."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    found = []
    for i in range(0, len(p), size):
        part = p[i : i + size]
        divergence = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        found.append(np.exp(divergence.sum(1).mean()))
    return np.mean(found)


@pytest.mark.parametrize("count", [40, 41, 97, 120])
def test_adms_parts_are_in_the_order_of_drawing(monkeypatch, count):
    """The last one has what is left; batches lie across the borders. Sorted, so order matters."""
    monkeypatch.setattr(inception_score, "ADM_SPLIT", 40)
    logits = 2 * np.random.default_rng(0).standard_normal((count, 6))
    logits = logits[np.argsort(logits[:, 0])]
    found = score(logits, batch=7)
    assert found["adm_splits_of_5000"] == pytest.approx(by_adm(logits, 40), rel=1e-9)
    assert found["value"] != pytest.approx(by_adm(logits, 40), rel=1e-3)


@pytest.mark.parametrize("count", [10, 19, 5001])
def test_every_image_is_in_one_of_ten_parts_and_in_one_of_adms(count):
    counts = Scores(count).counts
    assert counts[:SPLITS].sum() == counts[SPLITS:].sum() == count
    assert counts[:SPLITS].max() - counts[:SPLITS].min() <= 1
    assert len(counts) - SPLITS == -(-count // 5000)


def test_the_ten_parts_are_in_a_random_order():
    """Not in the order of drawing, by class say, in which each part would have one class only."""
    logits = 50 * np.eye(10)[np.repeat(np.arange(10), 60)]
    assert score(logits)["value"] > 8


def test_too_few_images_have_no_score():
    assert np.isnan(score(np.zeros((9, 4)))["value"])
