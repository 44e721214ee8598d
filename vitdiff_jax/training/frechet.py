"""Post-training of a generator that makes an image in one network call, by a Fréchet distance.

The loss is the Fréchet distance between features of generated and of training images (FD-loss,
arXiv:2604.28190). Its gradient by the features y of one image, where m and C are the moments of all
generated images and m', C' those of training images, is

    d FD / d y = 2 (y - y*),    y* = m' + A (y - m),    A = R (R C R)^-0.5 R,    R = C'^0.5

and y -> y* is the optimal transport map between the two Gaussians. So each image is drawn to where
its features should be: a regression. The moments are averages over past steps, so that no batch
must be large, and gradients are accumulated and summed over devices as in all training.

With classes or attributes, the moments are those of features and classes together (Fréchet joint
distance, arXiv:1907.08175), or the network would learn to ignore the class: its one-hot vector is
appended to the features, scaled to their total variance.

m' is subtracted from all features, so that second moments lose no digits of float32 to it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vitdiff_jax.data import gather
from vitdiff_jax.data.pipeline import Dataset
from vitdiff_jax.diffusion.schedules import ends
from vitdiff_jax.evaluation.features import Features
from vitdiff_jax.evaluation.frechet import Moments
from vitdiff_jax.evaluation.metric import Setting
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment.build import Experiment, config_errors
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.interop.images import from_uint8
from vitdiff_jax.runtime import logs

PLACE, KEY = ("vitdiff_jax.evaluation", "features"), "config.train.frechet.spaces"
REFERENCE, BATCH = 50_000, 200
"""Training images in the reference, at most; how many at a time."""
FLOOR = 1e-6
"""Of the roots of eigenvalues, relative to the largest: moments in float32 know none below."""
CONSTANT = 0.01
"""In FD / (FD + 0.01), which makes several spaces count alike."""

MomentsOf = dict[str, tuple[jax.Array, jax.Array]]
"""space -> (mean [D], second moment [D, D]) of its features."""


@dataclasses.dataclass(frozen=True)
class Space:
    """A feature space with the moments of the training images.

    classes: length of the one-hot vectors; 0: none. joint: factor of these, and of attributes.
    mean [D]: m'. root [D, D]: R.
    """

    features: Features
    classes: int
    joint: float
    mean: np.ndarray
    root: np.ndarray

    def __call__(self, images: jax.Array, cond: Mapping[str, jax.Array]) -> jax.Array:
        """Features [B, D] of images [B, H, W, C] in [-1, 1] less the mean of training images."""
        found = self.features.apply(self.features.params, jnp.clip(images, -1, 1))
        both = jnp.concatenate([found, self.joint * _kinds(cond, self.classes, len(images))], 1)
        return both - self.mean.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class FrechetLoss:
    """The loss in several spaces. decay: of the moments, per step."""

    spaces: Mapping[str, Space]
    decay: float

    def zeros(self) -> MomentsOf:
        """Moments before there are any."""
        sizes = {name: len(space.mean) for name, space in self.spaces.items()}
        return {name: (jnp.zeros(size), jnp.zeros((size, size))) for name, size in sizes.items()}

    def maps(self, moments: MomentsOf) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """{space: (A, m, distance)} for `__call__`, in float32; computed here, in float64."""
        found = {}
        for name, space in self.spaces.items():
            mean, second = (np.asarray(a, np.float64) for a in moments[name])
            onto, distance = transport(mean, second, space.root)
            found[name] = tuple(np.asarray(a, np.float32) for a in (onto, mean, distance))
        return found

    def __call__(
        self, images: jax.Array, cond: Mapping[str, jax.Array], maps: Any
    ) -> tuple[jax.Array, MomentsOf]:
        """(loss [], moments) of generated images [B, H, W, C] and their conditions.

        The gradient is that of the sum of FD / (FD + 0.01) over spaces, with constant denominators.
        """
        total, found = jnp.zeros(()), {}
        for name, space in self.spaces.items():
            y, (onto, mean, distance) = space(images, cond), maps[name]
            wanted = jax.lax.stop_gradient((y - mean) @ onto)
            total += jnp.sum((y - wanted) ** 2, 1).mean() / (distance + CONSTANT)
            found[name] = _moments(jax.lax.stop_gradient(y))
        return total, found

    def moments(self, images: jax.Array, cond: Mapping[str, jax.Array]) -> MomentsOf:
        """The moments of generated images."""
        return {name: _moments(space(images, cond)) for name, space in self.spaces.items()}

    def updated(self, old: MomentsOf, new: MomentsOf) -> MomentsOf:
        """The moments after another batch."""
        return jax.tree.map(lambda a, b: self.decay * a + (1 - self.decay) * b, old, new)


def transport(mean: np.ndarray, second: np.ndarray, root: np.ndarray) -> tuple[np.ndarray, float]:
    """(A [D, D], the Fréchet distance) to N(0, root^2) from a mean and a second moment."""
    covariance = second - np.outer(mean, mean)
    values, vectors = np.linalg.eigh(root @ covariance @ root)
    values = np.sqrt(np.maximum(values, 0))
    distance = (mean**2).sum() + np.trace(covariance) + (root**2).sum() - 2 * values.sum()
    back = root @ vectors
    return (back / np.maximum(values, FLOOR * values[-1])) @ back.T, max(distance, 0.0)


def _moments(y: jax.Array) -> tuple[jax.Array, jax.Array]:
    return y.mean(0), jnp.einsum("bi,bj->ij", y, y, precision="highest") / len(y)


def _kinds(cond: Mapping[str, Any], classes: int, count: int) -> jax.Array:
    """One-hot classes and attributes [count, K] of images; K = 0 where there are none."""
    parts = [jnp.zeros((count, 0))]
    if "label" in cond:
        parts.append(jax.nn.one_hot(cond["label"], classes))
    if "attributes" in cond:
        parts.append(jnp.asarray(cond["attributes"], jnp.float32))
    return jnp.concatenate(parts, 1)


def prepare(
    config: ConfigDict, experiment: Experiment, dataset: Dataset, mesh: jax.sharding.Mesh
) -> FrechetLoss | None:
    """config.train.frechet with the moments of the training images; None if it is switched off."""
    if not config.train.frechet.spaces:
        return None
    check(config, experiment)
    setting = Setting(lambda: dataset, mesh, config.evaluate.inception)
    spaces = {}
    for name in config.train.frechet.spaces:
        make = config_lib.find(PLACE, KEY, name)
        with config_errors(f"{KEY}: "):
            spaces[name] = _space(make(setting), dataset, config.parallel.data_threads)
        logs.say(f"Fréchet loss: {name}, {len(spaces[name].mean)} features and classes")
    return FrechetLoss(spaces, config.train.frechet.decay)


def check(config: ConfigDict, experiment: Experiment) -> None:
    """Raise ConfigError where a model cannot be trained by a Fréchet distance."""
    for name in config.train.frechet.spaces:
        config_lib.find(PLACE, KEY, name)
    if not config.train.frechet.spaces:
        return
    if config.train.init_from is None:
        raise ConfigError(f"{KEY}: needs a trained model to begin with, config.train.init_from")
    if config.latent.factor > 1 or config.degradation.operators:
        what = "latents" if config.latent.factor > 1 else "a restoration model"
        raise ConfigError(f"{KEY}: not for {what}; use generators of pixels")
    if ends(experiment.process.schedule)[1] > 0:
        kind = type(experiment.process.schedule).__name__
        raise ConfigError(f"{KEY}: {kind} ends before the data, so one call makes no image")


def _space(features: Features, dataset: Dataset, threads: int) -> Space:
    """The space of these features, with classes, by the training images."""
    classes, count = dataset.classes or 0, len(dataset.train)
    which: Sequence[int] = range(count)
    if count > REFERENCE:
        which = sorted(np.random.default_rng(0).choice(count, REFERENCE, replace=False))
    apply, moments, size = jax.jit(features.apply), Moments(), 0
    for part in gather.read(dataset.train, which, BATCH, threads):
        found = np.asarray(apply(features.params, from_uint8(part["image"])))
        kinds = np.asarray(_kinds(part, classes, len(found)))
        moments.update(np.concatenate([found, kinds], 1))
        size = found.shape[1]
    mean, covariance = moments.gaussian()
    variances = np.diag(covariance)
    joint = float(np.sqrt(variances[:size].sum() / max(variances[size:].sum(), 1e-12)))
    scale = np.where(np.arange(len(mean)) < size, 1, joint)
    values, vectors = np.linalg.eigh(scale[:, None] * covariance * scale)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return Space(features, classes, joint, scale * mean, root)
