"""What every metric promises: it counts samples as they come, and reports plain numbers."""

import copy
import functools
import json

import pytest

from tests.parts import entries
from vitdiff_jax import evaluation

METRICS = entries(evaluation, "Metric")


@pytest.fixture(scope="module")
def make(dataset):
    """A fresh metric by its name; each is made once, since some train a classifier."""
    made = functools.cache(lambda name: METRICS[name](dataset))
    return lambda name: copy.deepcopy(made(name))


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_does_not_see_how_samples_are_batched(name, make, heldout):
    """The last batch is smaller than the others; the result must be that of all samples at once."""
    images, labels = heldout["image"][:200], heldout["label"][:200]
    at_once, in_parts = make(name), make(name)
    at_once.update(images, {"label": labels})
    for part in (slice(0, 90), slice(90, 180), slice(180, 200)):
        in_parts.update(images[part], {"label": labels[part]})
    assert in_parts.result() == pytest.approx(at_once.result(), rel=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_has_a_name_and_reports_json(name, make, heldout):
    """`evaluation.json` is {name: result}; `value` is what the other numbers stand beside."""
    metric = make(name)
    metric.update(heldout["image"], {"label": heldout["label"]})
    result = metric.result()
    assert isinstance(metric.name, str)
    assert "value" in result
    assert json.loads(json.dumps(result)) == result


def test_metrics_have_different_names(make):
    names = [make(name).name for name in METRICS]
    assert len(set(names)) == len(names)
