"""Samples judged by a classifier that is trained on the real training split, for small images.

Two numbers: the Fréchet distance of its features (128, before the last layer) between samples and
reference, and how often it reads a sample as the class it was drawn for. It is trained anew each
time, from a fixed seed, so the numbers compare between runs on one machine.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vitdiff_jax.data.pipeline import Dataset, batches
from vitdiff_jax.evaluation.frechet import Moments, frechet_distance
from vitdiff_jax.evaluation.measuring import Batch, Mean, Part, Setting
from vitdiff_jax.interop.images import from_uint8
from vitdiff_jax.models.classifier import Classifier, cross_entropy

BATCH, EPOCHS, LEAST_STEPS, LEARNING_RATE = 128, 4, 500, 2e-3


class Extractor:
    """Gives "features" [N, 128], and "right" [N]: whether an image is read as asked for."""

    def __init__(self, setting: Setting):
        dataset = setting.dataset
        if dataset.classes is None:
            raise ValueError("classifier needs a data set with classes")
        model = Classifier(dataset.classes)
        self.params = _train(model, dataset)
        self.apply = jax.jit(model.apply)
        weights = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(self.params))
        self.name = f"classifier-{zlib.crc32(weights):08x}"

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        if "label" not in batch.cond:
            raise ValueError("classifier needs to know what the images were drawn for")
        logits, features = self.apply(self.params, from_uint8(batch.images))
        return {
            "features": np.asarray(features),
            "right": np.asarray(logits).argmax(1) == batch.cond["label"],
        }


class Metric:
    """Fréchet distance ("value") and class accuracy, beside that of the reference."""

    name = "fd/classifier"
    compares, higher_is_better = True, False

    def __init__(self, setting: Setting):
        extractor = setting.shared(Extractor)
        self.parts = (Part(extractor, "features", Moments), Part(extractor, "right", Mean))

    def result(self, samples, reference) -> dict[str, float]:
        (features, right), (real_features, real_right) = samples, reference
        return {
            "value": frechet_distance(features.gaussian(), real_features.gaussian()),
            "accuracy": right.mean,
            "reference_accuracy": real_right.mean,
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
