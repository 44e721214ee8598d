"""A network of two matrices, for tests of what goes on around a network: it compiles in a second.

Each matrix is large enough that FSDP and ZeRO-1 shard it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

MODEL = dict(name=__name__)
"""The section of a config; in files of configs only, for a config.json must not name code."""


class Model(nn.Module):
    """As `vit.Model`, for 8x8 images with labels and, where there are any, hints."""

    conditions: dict
    width: int = 64
    dropout: float = 0.0

    def check(self, shape):
        pass

    @nn.compact
    def __call__(self, x, time, cond, keys=None):
        rows = self.conditions["label"][0] + 1
        seen = (x + cond.get("hint", 0)).reshape(len(x), -1)
        h = nn.Dense(self.width, name="in")(seen) + time[:, None]
        h = h + nn.Embed(rows, self.width, name="label")(cond["label"] % rows)
        if keys is not None and self.dropout:
            keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.dropout, h[0].shape))
            h = jnp.where(keep(keys), h / (1 - self.dropout), 0)
        return nn.Dense(x[0].size, name="head")(nn.tanh(h)).reshape(x.shape)
