"""The least network of an input, a time, a label and, where there is one, a hint.

In tests it is the package's model "plain" or external code, see `tests.tiny`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitdiff_jax.models.conditions import Sizes


class Model(nn.Module):
    """Two matrices: from the pixels and the time to `width`, plus a row of the label, and back."""

    conditions: Sizes
    width: int = 16
    dropout: float = 0.0
    learned_sigma: bool = False

    def check(self, shape):
        """Any image will do."""

    @nn.compact
    def __call__(self, x, time, cond, keys=None):
        (labels,) = self.conditions["label"]
        rows = self.param("labels", nn.initializers.normal(), (labels + 1, self.width))
        wave = jnp.sin(time)[:, None]  # for some processes time runs to 999
        seen = jnp.concatenate([(x + cond.get("hint", 0)).reshape(len(x), -1), wave], 1)
        h = nn.Dense(self.width, name="in")(seen) + rows[cond["label"]]
        if keys is not None and self.dropout:
            keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.dropout, h[0].shape))
            h = jnp.where(keep(keys), h / (1 - self.dropout), 0)
        outputs = (1 + self.learned_sigma) * x.shape[-1]
        out = nn.Dense(x[0, ..., 0].size * outputs, name="head")(jnp.tanh(h))
        return out.reshape(*x.shape[:-1], outputs).astype(jnp.float32)
