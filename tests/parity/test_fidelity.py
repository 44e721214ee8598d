"""FID, KID, precision and recall, Inception Score against torch-fidelity's, of equal features."""

import types

import numpy as np
import pytest

from vitdiff_jax.evaluation import fid, inception_score, kid, precision_recall
from vitdiff_jax.evaluation.frechet import Moments

pytestmark = pytest.mark.extra

REASON = 'needs PyTorch: pip install -e ".[parity]"'
torch = pytest.importorskip("torch", reason=REASON)
metric_fid = pytest.importorskip("torch_fidelity.metric_fid", reason=REASON)
metric_isc = pytest.importorskip("torch_fidelity.metric_isc", reason=REASON)
metric_kid = pytest.importorskip("torch_fidelity.metric_kid", reason=REASON)
metric_prc = pytest.importorskip("torch_fidelity.metric_prc", reason=REASON)
DEFAULTS = pytest.importorskip("torch_fidelity.defaults", reason=REASON).DEFAULTS

SETTING = types.SimpleNamespace(shared=lambda make, key=None: None)
"""Metrics whose parts are filled in by hand need no network."""


def features(count, size=12, shift=0.0, seed=0):
    """Correlated float64 vectors, not centred."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).standard_normal((size, size)) / size**0.5
    return random.standard_normal((count, size)) @ mixing + 0.5 + shift


def kept(vectors):
    return [types.SimpleNamespace(vectors=vectors)]


def test_fid():
    first, second = features(200), features(150, shift=0.3, seed=1)
    stats = [metric_fid.fid_features_to_statistics(torch.from_numpy(a)) for a in (first, second)]
    wanted = metric_fid.fid_statistics_to_metric(*stats, verbose=False)
    found = fid.Metric(SETTING).result([Moments().update(first)], [Moments().update(second)])
    assert found["value"] == pytest.approx(wanted[metric_fid.KEY_METRIC_FID], rel=1e-6)


@pytest.mark.parametrize("counts", [(200, 150), (70, 200)])
def test_kid(monkeypatch, counts):
    """The same subsets, drawn with the same seed, whichever set is larger."""
    monkeypatch.setattr(kid, "SUBSETS", 7)
    monkeypatch.setattr(kid, "SUBSET", 60)
    first, second = features(counts[0]), features(counts[1], shift=0.3, seed=1)
    wanted = metric_kid.kid_features_to_metric(
        torch.from_numpy(first), torch.from_numpy(second),
        kid_subsets=7, kid_subset_size=60, verbose=False,
    )  # fmt: skip
    found = kid.Metric(SETTING).result(kept(first), kept(second))
    assert found["value"] == pytest.approx(wanted[metric_kid.KEY_METRIC_KID_MEAN], rel=1e-6)
    assert found["std"] == pytest.approx(wanted[metric_kid.KEY_METRIC_KID_STD], rel=1e-6)


def test_constants_are_its_defaults():
    assert {
        "kid_subsets": kid.SUBSETS,
        "kid_subset_size": kid.SUBSET,
        "isc_splits": inception_score.SPLITS,
        "prc_neighborhood": precision_recall.NEIGHBOUR,
    }.items() <= DEFAULTS.items()
    assert kid.SEED == inception_score.SEED == DEFAULTS["rng_seed"]


@pytest.mark.parametrize("rows", [64, 1000])
def test_precision_and_recall(monkeypatch, rows):
    """Which differ here, so that they cannot be exchanged; in pieces and at once."""
    monkeypatch.setattr(precision_recall, "ROWS", rows)
    monkeypatch.setattr(precision_recall, "COLUMNS", rows + 2)
    samples, real = 0.7 * features(300, 6, shift=0.7), features(250, 6, seed=1)
    wanted = metric_prc.prc_features_to_metric(
        torch.from_numpy(samples), torch.from_numpy(real), verbose=False
    )
    found = precision_recall.Metric(SETTING).result(kept(samples), kept(real))
    precision, recall = (
        wanted[key] for key in (metric_prc.KEY_METRIC_PRECISION, metric_prc.KEY_METRIC_RECALL)
    )
    assert 0.1 < recall < precision - 0.1
    assert precision < 0.99
    assert found == pytest.approx({"value": precision, "recall": recall}, rel=1e-6)


@pytest.mark.parametrize("count", [10, 200, 203, 5007])
def test_inception_score(count):
    """In its random order, of a number that ten does not divide, in odd batches."""
    logits = 3 * features(count, 8)
    wanted = metric_isc.isc_features_to_metric(torch.from_numpy(logits))
    scores = inception_score.Scores(count)
    for rows in np.split(logits, np.cumsum([1, 6, 50])):
        scores.update(rows)
    found = inception_score.Metric(SETTING).result([scores], [])
    assert found["value"] == pytest.approx(wanted[metric_isc.KEY_METRIC_ISC_MEAN], rel=1e-6)
    assert found["std"] == pytest.approx(wanted[metric_isc.KEY_METRIC_ISC_STD], rel=1e-6, abs=1e-12)
