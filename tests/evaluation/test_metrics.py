"""What every metric promises: it adds up samples as they come, and reports plain numbers."""

import copy
import json
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluation import weights
from tests.parts import entries
from vitdiff_jax import evaluation
from vitdiff_jax.evaluation import classifier, networks
from vitdiff_jax.evaluation.frechet import Moments
from vitdiff_jax.evaluation.metric import Batch, Measured, Part, Setting
from vitdiff_jax.experiment import config
from vitdiff_jax.runtime import parallel

METRICS = {  # not the contract itself, nor a file that imports it
    name: entry for name, entry in entries(evaluation, "Metric").items()
    if entry.__module__.endswith(f".{name}") and name != "metric"
}  # fmt: skip
ENLARGED = {"lpips": 4, "ssim": 2}  # what refuses images of 8x8
COUNT = 12
each_metric = pytest.mark.parametrize("name", METRICS)


class Seen:
    """An extractor that keeps its answers: metrics share networks that take a second a batch."""

    def __init__(self, extractor):
        self.extractor, self.name, self.known = extractor, extractor.name, {}

    def __call__(self, batch):
        key = batch.images.shape, batch.images.tobytes()
        if key not in self.known:
            self.known[key] = self.extractor(batch)
        return self.known[key]


class SmallClassifier(nn.Module):
    """In place of `models.classifier`: without convolutions."""

    classes: int

    @nn.compact
    def __call__(self, x):
        features = nn.Dense(64)(x.reshape(len(x), -1))
        return nn.Dense(self.classes)(nn.relu(features)), features


def small_pairs(setting):
    """In place of `networks.lpips`."""

    def apply(params, images, truth):
        gap = abs(images.astype(jnp.float32) - truth)
        return {"vgg16": gap.mean((1, 2, 3)), "alexnet": gap.max((1, 2, 3))}

    return networks.Network("lpips", "none", apply, {}, setting.mesh, pairs=True)


@pytest.fixture(scope="module", params=["small", pytest.param("inception", marks=pytest.mark.slow)])
def setting(request, dataset):
    """With small stand-ins for the networks and the classifier, or the real ones."""
    real = request.param == "inception"
    path = str(request.getfixturevalue("inception")) if real else None
    found = Setting(lambda: dataset, parallel.make_mesh(), path, patch=2)
    for network in (networks.vgg16, *([] if real else [networks.inception])):
        found.shared(weights.small, network)
    found.shared(small_pairs, networks.lpips)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "BATCH", {"cpu": 4})  # of batches of 5 and 2
        if not real:
            patch.setattr(classifier, "MIN_STEPS", 60)
            patch.setattr(classifier, "EPOCHS", 0)
            patch.setattr(classifier, "Classifier", SmallClassifier)
        yield found


@pytest.fixture(scope="module")
def make(setting):
    """A function: name -> the metric; networks and classifiers are shared."""
    made, seen = {}, {}

    def get(name):
        if name not in made:
            metric = made[name] = METRICS[name](setting)
            for part in metric.parts:
                seen.setdefault(part.extractor, Seen(part.extractor))
            metric.parts = tuple(Part(seen[p.extractor], p.output, p.kind) for p in metric.parts)
        return made[name]

    return get


@pytest.fixture
def metric(make, name):
    """Made before a test begins: a classifier is trained."""
    return make(name)


@pytest.fixture(scope="module")
def images(dataset, heldout):
    """A function: name -> a batch for it: held-out images, "true" ones and labels."""

    def get(name):
        factor = ENLARGED.get(name, 1)
        both = heldout["image"][:COUNT], dataset.train.images[:COUNT]
        both = (a.repeat(factor, 1).repeat(factor, 2) for a in both)
        seen, truth = both
        return Batch(seen, {"label": heldout["label"][:COUNT]}, truth)

    return get


def part_of(batch, which):
    cond = {name: values[which] for name, values in batch.cond.items()}
    return Batch(batch.images[which], cond, batch.truth[which])


@pytest.fixture(scope="module")
def whole(make, images):
    """A function: name -> what is added up of all images at once."""

    def get(name):
        metric = make(name)
        measured = Measured(metric.parts, COUNT)
        measured.update(images(name))
        return measured.of(metric)

    return get


@each_metric
def test_samples_come_in_any_batches_and_after_an_interruption(
    name, metric, images, whole, tmp_path
):
    """The last batch is smaller; half of them are added up by an earlier run."""
    batch = images(name)
    first, second = (Measured(metric.parts, COUNT) for _ in range(2))
    first.update(part_of(batch, slice(0, 5)))
    first.save(tmp_path / "half.npz", {"of": name})
    assert not second.load(tmp_path / "half.npz", {"of": "another"})
    assert second.load(tmp_path / "half.npz", {"of": name})
    assert (first.done, second.done) == (5, 5)
    for which in (slice(5, 10), slice(10, COUNT)):
        first.update(part_of(batch, which))
        second.update(part_of(batch, which))
    for one, other, wanted in zip(first.of(metric), second.of(metric), whole(name), strict=True):
        for key, array in wanted.arrays().items():
            np.testing.assert_array_equal(one.arrays()[key], other.arrays()[key])
            scale = np.abs(array).max() + 1e-9
            np.testing.assert_allclose(other.arrays()[key] / scale, array / scale, atol=1e-5)


def first_numbers(accumulator):
    """The moments of the first 64 numbers: of all 2048 the root would take many seconds."""
    if isinstance(accumulator, Moments):
        accumulator = copy.copy(accumulator)
        accumulator.sum, accumulator.outer = accumulator.sum[:64], accumulator.outer[:64, :64]
    return accumulator


@each_metric
def test_result_is_json_and_nothing_is_nearer_than_the_reference_itself(name, metric, whole):
    """`value` is what stands in the table; a squared distance of KID's may be just below zero."""
    found = [first_numbers(a) for a in whole(name)]
    result = metric.result(found, found)
    assert next(iter(result)) == "value"
    assert json.loads(json.dumps(result)) == result
    assert all(type(value) is float and math.isfinite(value) for value in result.values())
    if name == "patch_grid":
        assert result["value"] == result["energy"] == metric.ideal
    elif metric.compares and not metric.higher_is_better:
        size = np.trace(found[0].gaussian()[1]) if isinstance(found[0], Moments) else 1.0
        assert result["value"] < 1e-6 * size
        assert name == "kid" or result["value"] > -1e-6 * size
    if name == "classifier":
        assert result["accuracy"] == result["reference_accuracy"] > 0.7
    if name == "lpips":
        assert (result["value"], result["alexnet"]) == tuple(part.mean for part in found)
    if name == "precision_recall":
        assert result == {"value": 1.0, "recall": 1.0}


def test_metrics_have_different_names():
    assert len({metric.name for metric in METRICS.values()}) == len(METRICS)


def test_metrics_of_one_network_look_once():
    """FID, sFID, KID, precision and Inception Score cost one pass."""
    calls = []

    class Counting(networks.Network):
        def __init__(self):
            self.name = "counting"

        def __call__(self, batch):
            calls.append(len(batch.images))
            rows = np.ones((len(batch.images), 3), np.float32)
            return {"pool": rows, "spatial": rows, "logits": rows}

    setting = Setting(lambda: None, None)
    setting.shared(lambda s: Counting(), networks.inception)
    looking = ["fid", "sfid", "kid", "precision_recall", "inception_score"]
    parts = [part for name in looking for part in METRICS[name](setting).parts]
    Measured(parts, 4).update(Batch(np.zeros((4, 8, 8, 1), np.uint8)))
    assert calls == [4]


def test_what_a_config_may_name_are_metrics():
    assert sorted(config.available(config.METRICS)) == sorted(METRICS)
