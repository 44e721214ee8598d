"""Tiny denoisers with random parameters, and what they are given: for the tests of this folder.

The published initialisations make the networks the constant 0, so most tests draw all parameters at
random. What is compiled is kept, so that tests of one file share it.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import random as random_lib

from tests.parts import entries
from vitdiff_jax import models
from vitdiff_jax.models.conditions import null_batch

DENOISERS = entries(models, "Model")
TEXT = dict(text_width=8, text_depth=1)
TINY = {  # a denoiser that is not here is tested with its defaults
    "vit": TEXT
    | dict(patch=2, width=16, depth=2, heads=2, bottleneck=8, class_tokens=3, class_tokens_from=1),
    "dit": TEXT | dict(patch=2, width=16, depth=2, heads=2),
    "uvit": dict(  # blocks 0, 1, the middle 2, and 3, 4; a text encoder of two heads
        patch=2, width=16, depth=4, heads=2, text_width=128, text_depth=1
    ),
    "unet": TEXT | dict(width=8, multipliers=(1, 2), blocks=1, attention=(1,), head_width=8),
}
DROPPED = dict(depth=4, class_tokens_from=0, dropout=0.5)  # vit's blocks 1 and 2 have dropout
SHAPE = (4, 6, 3)
CLASSES = 5
LABEL = {"label": (CLASSES,)}
ALL = LABEL | {"attributes": (2,), "text": (16,), "embedding": (2, 6), "hint": (1,)}
SIZES = {"label": LABEL, "all": ALL, "none": {}}


def denoiser(name, told="label", **options):
    """The tiny model that is told a label, all there is, or none, with these options."""
    return DENOISERS[name](**dict(conditions=SIZES[told]) | TINY.get(name, {}) | options)


def shape_of(model, shape=SHAPE):
    """The smallest of this shape and those twice, four times, ... as large that the model takes."""
    height, width, channels = shape
    try:
        model.check(shape)
    except ValueError:
        if height > 1000:
            raise
        return shape_of(model, (2 * height, 2 * width, channels))
    return shape


def inputs(told="label", shape=SHAPE, batch=3):
    """Random images, times and conditions; labels are 0, 1, ..., the last -1; texts of 5 bytes."""
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((batch, *shape)), jnp.float32)
    time = jnp.asarray(random.uniform(0, 1, batch), jnp.float32)
    cond = {name: np.array(a) for name, a in null_batch(ALL, batch, *shape[:2]).items()}
    cond["label"][:] = [*range(batch - 1), -1]
    cond["attributes"][:] = random.integers(0, 2, (batch, 2))
    cond["text"][:, :5] = random.integers(0, 256, (batch, 5))
    for name in ("embedding", "hint"):
        cond[name][:] = random.standard_normal(cond[name].shape)
    return x, time, {name: jnp.asarray(cond[name]) for name in SIZES[told]}


def param_shapes(model, shape=SHAPE):
    images, cond = jnp.zeros((1, *shape)), null_batch(model.conditions, 1, *shape[:2])
    return jax.eval_shape(model.init, jax.random.key(0), images, jnp.zeros(1), cond)["params"]


def count(model, shape):
    """How many parameters it has."""
    return sum(leaf.size for leaf in jax.tree.leaves(param_shapes(model, shape)))


def random_params(model, shape=SHAPE, seed=0):
    """All parameters normal with the standard deviation 0.3; those of norms around 1."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        center = 1.0 if "norm" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(center + 0.3 * random.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, param_shapes(model, shape))


def stacked(params, wanted):
    """Unrolled parameters as `scan` wants them: the tree `wanted`, whose block trees are stacks."""
    found = {}
    for name in wanted:
        run = re.fullmatch(r"blocks_(\d+)_to_(\d+)", name)
        if run:
            numbers = range(int(run[1]), int(run[2]) + 1)
            blocks = [params[f"block_{i}"] for i in numbers]
            found[name] = jax.tree.map(lambda *a: jnp.stack(a), *blocks)
        else:
            found[name] = params[name]
    return found


def _bits(key, width, shape):
    return jnp.asarray(np.random.default_rng(0).integers(0, 2**width, shape), f"uint{width}")


CONSTANT = random_lib.define_prng_impl(
    key_shape=(1,), seed=lambda seed: jnp.zeros(1, "uint32"),
    split=lambda key, shape: jnp.zeros((*shape, 1), "uint32"),
    fold_in=lambda key, data: key, random_bits=_bits, name="constant",
)  # fmt: skip
"""Random numbers that are constants of the program: a generator takes most of its compilation."""


def initialised(model, given):
    """The parameters that training starts from, as far as they are not random."""
    return jax.jit(model.init)(jax.random.key(0, impl=CONSTANT), *given)["params"]


@functools.cache
def tiny_params(name, told="label", **options):
    model = denoiser(name, told, **options)
    return random_params(model, shape_of(model))


@functools.cache
def compiled(name, told="label", **options):
    """(params, x, time, cond, keys) -> images, of the tiny model with these options."""
    model = denoiser(name, told, **options)
    return jax.jit(lambda params, *args: model.apply({"params": params}, *args))
