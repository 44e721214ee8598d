"""Samples judged by a classifier that is trained on the real training split, for small images.

Two numbers: how often it reads a sample as the class it was drawn for, beside its accuracy on the
held-out real images; and the Fréchet distance of its features (128, before the last layer) between
samples and held-out images, beside that of the real training images, which is the floor. It is
trained anew each time, from a fixed seed, so the numbers compare between runs on one machine.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vitdiff_jax.data.pipeline import Dataset, Source, batches, stacked
from vitdiff_jax.evaluation.frechet import Moments, frechet_distance
from vitdiff_jax.interop.images import from_uint8
from vitdiff_jax.models.classifier import Classifier, cross_entropy

BATCH, EPOCHS, LEAST_STEPS, LEARNING_RATE = 128, 4, 500, 2e-3


class Metric:
    """Class accuracy and Fréchet distance of samples by a classifier of the data set's own."""

    name = "classifier"

    def __init__(self, dataset: Dataset):
        """Train the classifier. Needs a data set with classes."""
        if dataset.classes is None:
            raise ValueError("classifier needs a data set with classes")
        self.model = Classifier(dataset.classes)
        self.params = _train(self.model, dataset)
        self.apply = jax.jit(self.model.apply)
        self.heldout, self.accuracy = self._judge(dataset.heldout)
        train, _ = self._judge(dataset.train)
        self.floor = frechet_distance(train, self.heldout)
        self.samples, self.right = Moments(128), 0

    def _features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(predicted labels [N], features [N, 128]) of uint8 [N, H, W, C]."""
        parts = [
            self.apply(self.params, from_uint8(images[i : i + 500]))
            for i in range(0, len(images), 500)
        ]
        logits, features = (np.concatenate(part) for part in zip(*parts))
        return logits.argmax(1), features

    def _judge(self, source: Source):
        """((mean, covariance) of the features, accuracy) on a real split."""
        moments, right = Moments(128), 0
        for first in range(0, len(source), 2000):
            part = stacked(source, range(first, min(first + 2000, len(source))))
            labels, features = self._features(part["image"])
            moments.update(features)
            right += int((labels == part["label"]).sum())
        return moments.gaussian(), right / len(source)

    def update(self, images: np.ndarray, cond: dict[str, np.ndarray]) -> None:
        """Add samples uint8 [N, H, W, C] drawn for the labels [N] in `cond`."""
        labels, features = self._features(images)
        self.samples.update(features)
        self.right += int((labels == cond["label"]).sum())

    def result(self) -> dict[str, float]:
        """Both numbers, each with what real images get."""
        return {
            "value": frechet_distance(self.samples.gaussian(), self.heldout),
            "floor": self.floor,
            "accuracy": self.right / self.samples.count,
            "heldout_accuracy": self.accuracy,
        }


def _train(model: Classifier, dataset: Dataset):
    """Parameters after four epochs, at least 500 steps, of Adam with a cosine schedule."""
    steps = max(LEAST_STEPS, EPOCHS * len(dataset.train) // BATCH)
    optimizer = optax.adamw(optax.cosine_decay_schedule(LEARNING_RATE, steps), weight_decay=1e-2)
    params = model.init(jax.random.key(0), jnp.zeros((1, *dataset.shape)))
    state = optimizer.init(params)

    def loss(params, images, labels):
        return cross_entropy(model.apply(params, from_uint8(images))[0], labels)

    @jax.jit
    def step(params, state, images, labels):
        grads = jax.grad(loss)(params, images, labels)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    source = batches(dataset.train, BATCH, seed=0)
    for _ in range(steps):
        batch = next(source)
        params, state = step(params, state, batch["image"], batch["label"])
    return params
