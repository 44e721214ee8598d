"""Fréchet distance and class accuracy by a classifier trained on the training split.

The Fréchet distance is that of the classifier's 128 features before the last layer. For small
images. The classifier is trained for each evaluation with a fixed seed, so results are comparable
between runs on the same machine.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vitdiff_jax.data.pipeline import Dataset, batches
from vitdiff_jax.evaluation.features import Features
from vitdiff_jax.evaluation.frechet import Moments, frechet_distance
from vitdiff_jax.evaluation.metric import Batch, Mean, Part, Setting
from vitdiff_jax.interop.images import from_uint8
from vitdiff_jax.models.classifier import Classifier, cross_entropy

BATCH, EPOCHS, MIN_STEPS, LEARNING_RATE = 128, 4, 500, 2e-3


class Extractor:
    """Gives "features" [N, 128] and "correct" [N]: whether an image is classified as its class."""

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
            raise ValueError("classifier needs the class labels of the images")
        logits, features = self.apply(self.params, from_uint8(batch.images))
        return {
            "features": np.asarray(features),
            "correct": np.asarray(logits).argmax(1) == batch.cond["label"],
        }


class Metric:
    """Fréchet distance ("value"), class accuracy, and class accuracy of the reference."""

    name = "fd/classifier"
    compares, higher_is_better = True, False

    def __init__(self, setting: Setting):
        extractor = setting.shared(Extractor)
        self.parts = (Part(extractor, "features", Moments), Part(extractor, "correct", Mean))

    def result(self, samples, reference) -> dict[str, float]:
        (features, correct), (real_features, real_correct) = samples, reference
        return {
            "value": frechet_distance(features.gaussian(), real_features.gaussian()),
            "accuracy": correct.mean,
            "reference_accuracy": real_correct.mean,
        }


def features(setting: Setting) -> Features:
    """The 128 features of another classifier than the judge's: trained alike, from another seed."""
    dataset = setting.dataset
    if dataset.classes is None:
        raise ValueError("classifier needs a data set with classes")
    model: Any = Classifier(dataset.classes)
    return Features(_train(model, dataset, seed=1), lambda params, x: model.apply(params, x)[1])


def _train(model: Classifier, dataset: Dataset, seed: int = 0):
    """Parameters after four epochs, but at least 500 steps, of AdamW with cosine decay."""
    steps = max(MIN_STEPS, EPOCHS * len(dataset.train) // BATCH)
    optimizer = optax.adamw(optax.cosine_decay_schedule(LEARNING_RATE, steps), weight_decay=1e-2)
    params = model.init(jax.random.key(seed), jnp.zeros((1, *dataset.shape)))
    state = optimizer.init(params)

    def loss(params, images, labels):
        return cross_entropy(model.apply(params, from_uint8(images))[0], labels)

    @jax.jit
    def step(params, state, images, labels):
        grads = jax.grad(loss)(params, images, labels)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    source = batches(dataset.train, BATCH, seed=seed)
    for _ in range(steps):
        batch = next(source)
        params, state = step(params, state, batch["image"], batch["label"])
    return params
