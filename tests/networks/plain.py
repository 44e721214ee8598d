"""The least network of an input, a time and a label; see `tests.tiny.plain_network`."""

import flax.linen as nn
import jax.numpy as jnp

from vitdiff_jax.models.conditions import Sizes


class Model(nn.Module):
    """Two matrices: from the pixels and the time to `width`, plus a row of the label, and back."""

    conditions: Sizes
    width: int = 16
    learned_sigma: bool = False

    def check(self, shape):
        """Any image will do."""

    @nn.compact
    def __call__(self, x, time, cond, keys=None):
        (labels,) = self.conditions["label"]
        rows = self.param("labels", nn.initializers.normal(), (labels + 1, self.width))
        wave = jnp.sin(time)[:, None]  # for some processes time runs to 999
        seen = jnp.concatenate([x.reshape(len(x), -1), wave], 1)
        h = nn.Dense(self.width)(seen) + rows[cond["label"]]
        outputs = (1 + self.learned_sigma) * x.shape[-1]
        out = nn.Dense(x[0, ..., 0].size * outputs)(jnp.tanh(h))
        return out.reshape(*x.shape[:-1], outputs).astype(jnp.float32)
