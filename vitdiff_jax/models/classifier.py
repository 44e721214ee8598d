"""A small convolutional classifier for small images, used to evaluate samples."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Classifier(nn.Module):
    """Images [B, H, W, C] in [-1, 1] -> (logits [B, classes], features [B, 128])."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        width = 32
        while min(x.shape[1:3]) > 4:  # downsample to 4x4, with at most 128 channels
            x = nn.relu(nn.Conv(width, (3, 3), (2, 2))(x))
            width = min(2 * width, 128)
        x = nn.relu(nn.Conv(128, (3, 3))(x))
        features = nn.Dense(128)(x.reshape(len(x), -1))
        return nn.Dense(self.classes)(nn.relu(features)), features


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of logits [B, K] and labels [B]."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()
