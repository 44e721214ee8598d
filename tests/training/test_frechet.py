"""The Fréchet loss against SciPy's matrix root and finite differences, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from vitdiff_jax.data import digits
from vitdiff_jax.evaluation import classifier, pixel_frechet
from vitdiff_jax.evaluation.features import Features
from vitdiff_jax.evaluation.frechet import Moments, frechet_distance
from vitdiff_jax.evaluation.metric import Setting
from vitdiff_jax.runtime import parallel
from vitdiff_jax.training import frechet

D, N = 6, 40


def distance(y, mean, covariance):
    """The definition, for features [N, D] whose covariance has ddof 0."""
    own = np.cov(y.T, ddof=0)
    root = scipy.linalg.sqrtm(own @ covariance)
    return ((y.mean(0) - mean) ** 2).sum() + np.trace(own + covariance - 2 * np.real(root))


def features(seed, stds=1.0, count=N):
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((count, D)) * stds @ random.standard_normal((D, D))
    return mixed + random.standard_normal(D)


def root(covariance):
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def moments(y):
    return y.mean(0), y.T @ y / len(y)


@pytest.mark.parametrize("stds", [1.0, np.logspace(0, -2.5, D)], ids=["good", "ill-conditioned"])
def test_distance_and_gradient_are_those_of_the_definition(stds):
    """That of the features of one image is 2 (y - y*) / N."""
    y, data = features(0, stds), features(1, stds)
    covariance = np.cov(data.T, ddof=0)
    onto, found = frechet.transport(*moments(y - data.mean(0)), root(covariance))
    wanted = functools.partial(distance, mean=data.mean(0), covariance=covariance)
    assert found == pytest.approx(wanted(y), rel=1e-7)
    pull = 2 * (y - data.mean(0) - (y - y.mean(0)) @ onto) / N
    for i, j in ((0, 0), (7, 3), (39, 5)):
        step = np.zeros_like(y)
        step[i, j] = 1e-4 * np.abs(y[:, j]).max()
        slope = (wanted(y + step) - wanted(y - step)) / (2 * step[i, j])
        assert pull[i, j] == pytest.approx(slope, rel=1e-3, abs=1e-5 * np.abs(pull).max())


def test_images_where_they_should_be_are_not_moved():
    data = features(2)
    onto, found = frechet.transport(*moments(data - data.mean(0)), root(np.cov(data.T, ddof=0)))
    assert found < 1e-9
    np.testing.assert_allclose(onto, np.eye(D), atol=1e-6)


def test_a_flat_space_is_moved_within_itself():
    """Features without variance in some directions have no infinite map."""
    flat = np.diag([1.0, 1, 1, 0, 0, 0])
    y, data = features(0) @ flat, features(1) @ flat
    onto, _ = frechet.transport(*moments(y - data.mean(0)), root(np.cov(data.T)))
    assert np.abs(onto).max() < 100
    assert np.abs(onto[3:]).max() < 1e-5


def loss_of(*names, classes=3):
    """The loss in spaces of the identity, each with its own training images and classes."""
    spaces = {}
    for i, name in enumerate(names):
        kinds = np.eye(classes)[np.arange(N) % classes]
        data = np.concatenate([features(i + 5), 0.5 * kinds], 1)
        plain = Features({}, lambda params, images: images.reshape(len(images), -1))
        spaces[name] = frechet.Space(
            plain, classes, 0.5, data.mean(0), root(np.cov(data.T, ddof=0))
        )
    return frechet.FrechetLoss(spaces, decay=0.75)


def test_the_gradient_is_that_of_the_weighted_sum_over_spaces():
    """By the joint statistics of features and class; classes themselves have none."""
    loss = loss_of("one", "two")
    y = np.clip(0.2 * features(0), -0.9, 0.9)
    label = np.arange(N, dtype=np.int32) % 3
    both = np.concatenate([y, 0.5 * np.eye(3)[label]], 1)
    maps = loss.maps({name: moments(both - s.mean) for name, s in loss.spaces.items()})

    def value(images):
        return loss(images, {"label": jnp.asarray(label)}, maps)

    images = jnp.asarray(y.reshape(N, 2, 3, 1), jnp.float32)
    (_, found), gradient = value(images), jax.grad(lambda x: value(x)[0])(images)

    def total(both):
        of_each = [distance(both, s.mean, s.root @ s.root) for s in loss.spaces.values()]
        return sum(d / (w + 0.01) for d, w in zip(of_each, weights, strict=True))

    weights = [distance(both, s.mean, s.root @ s.root) for s in loss.spaces.values()]
    for i, j in ((0, 0), (11, 4)):
        step = np.zeros_like(both)
        step[i, j] = 1e-4
        slope = (total(both + step) - total(both - step)) / 2e-4
        assert gradient.reshape(N, D)[i, j] == pytest.approx(slope, rel=2e-3)
    for name, space in loss.spaces.items():
        mean, second = moments(both - space.mean)
        np.testing.assert_allclose(found[name][0], mean, atol=1e-5)
        np.testing.assert_allclose(found[name][1], second, rtol=1e-4, atol=1e-5)


def test_moments_are_averages_over_past_steps():
    loss = loss_of("one")
    old, new = ({"one": moments(features(i))} for i in range(2))
    found = loss.updated(old, new)
    for a, b, c in zip(*map(jax.tree.leaves, (found, old, new)), strict=True):
        np.testing.assert_allclose(a, 0.75 * b + 0.25 * c)


def test_a_space_has_the_moments_of_the_training_images():
    """Classes count as much as the features: their variances have equal sums."""
    data = digits.dataset()
    setting = Setting(lambda: data, parallel.make_mesh())
    space = frechet._space(pixel_frechet.features(setting), data, 1)
    images, labels = data.train.images, data.train.labels
    pixels = images.reshape(len(images), -1) / 127.5 - 1
    joint = np.sqrt(pixels.var(0).sum() / np.eye(10)[labels].var(0).sum())
    both = np.concatenate([pixels, joint * np.eye(10)[labels]], 1)
    assert space.joint == pytest.approx(joint, rel=1e-5)
    np.testing.assert_allclose(space.mean, both.mean(0), atol=1e-5)
    np.testing.assert_allclose(space.root @ space.root, np.cov(both.T), atol=1e-4)
    own = (both - both.mean(0)).astype("f4")
    np.testing.assert_allclose(space(images / 127.5 - 1, {"label": labels}), own, atol=1e-5)
    reference = frechet_distance(
        Moments().update(both[::2]).gaussian(), (both.mean(0), np.cov(both.T))
    )
    half = both[::2] - space.mean
    mean, second = half.mean(0), half.T @ half / len(half) * len(half) / (len(half) - 1)
    second -= np.outer(mean, mean) / (len(half) - 1)
    assert frechet.transport(mean, second, space.root)[1] == pytest.approx(reference, rel=1e-4)


@pytest.mark.slow
def test_the_classifier_of_the_loss_is_not_the_judge():
    setting = Setting(lambda: digits.dataset(), parallel.make_mesh())
    judge = setting.shared(classifier.Extractor)
    other = classifier.features(setting)
    images = digits.dataset().heldout.images[:50]
    theirs = judge.apply(judge.params, images / 127.5 - 1)[1]
    assert np.abs(theirs - other.apply(other.params, images / 127.5 - 1)).max() > 0.1
