"""Random degradations for training a conditional restoration model (Palette, arXiv:2111.05826).

    y = A x + s n,    hint = as_image(A, y)

The kind of A is chosen uniformly, then one operator from the bank of that kind, which NumPy samples
beforehand (masks, motion kernels; a single one if nothing is random). s is uniform in [0, noise], n
is white noise. All randomness comes from the example's own key and does not depend on the batch.

Every kind is computed for every example and the result selected: examples are sharded over devices,
so a loop over them would use one device at a time, and under `vmap` a switch evaluates all branches
anyway. Ten kinds (three masks, two blurs, ...) at 256x256x3 cost 1.4 GFLOP and 8 MiB per image,
against more than 100 GFLOP for a training step of ViT-B/16. On a CPU they take 0.23 s per image,
0.14 s of it for the motion blur, whose kernel differs between examples. Each kind of mask adds
4 MiB to the program (64 masks, one byte per pixel); tomography, by conjugate gradients, costs sixty
times its forward map.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax import operators
from vitdiff_jax.data.pipeline import Example, Source
from vitdiff_jax.interop.images import from_uint8
from vitdiff_jax.operators import Operator, Shape, parsing
from vitdiff_jax.operators.inverse import as_image


@dataclasses.dataclass(frozen=True, eq=False)
class Bank:
    """Operators of one kind, with their arrays stacked along a leading axis [count]."""

    stacked: Any
    count: int

    def operator(self, number: jax.Array | int) -> Operator:
        """Operator `number`."""
        return jax.tree.map(lambda a: jnp.asarray(a)[number], self.stacked)


@dataclasses.dataclass(frozen=True, eq=False)
class Degradation:
    """A random degradation. noise: the maximum standard deviation, in units of [-1, 1]."""

    banks: tuple[Bank, ...]
    noise: float

    def __call__(self, x: jax.Array, keys: jax.Array) -> jax.Array:
        """Hints, i.e. degraded images, of the shape of x [B, H, W, C]; one key per example [B].

        Each key is split in four: for the kind, the operator, s and n.
        """
        keys = jax.vmap(lambda key: jax.random.split(key, 4))(keys)  # [B, 4]
        kinds = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(self.banks)))(keys[:, 0])
        hint = x
        for kind, bank in enumerate(self.banks):
            found = jax.vmap(functools.partial(self._hint, bank))(x, keys)
            hint = jnp.where((kinds == kind)[:, None, None, None], found, hint)
        return hint

    def _hint(self, bank: Bank, x: jax.Array, keys: jax.Array) -> jax.Array:
        """The hint of one image [H, W, C], by an operator from the bank."""
        height, width, channels = x.shape
        operator = bank.operator(jax.random.randint(keys[1], (), 0, bank.count))
        y = operator.forward(x[None])
        std = jax.random.uniform(keys[2], maxval=self.noise)
        return as_image(operator, y + std * white(keys[3], y), (height, width, channels))[0]


def white(key: jax.Array, like: jax.Array) -> jax.Array:
    """Standard normal noise like `like`; if complex, in both real and imaginary parts."""
    if not jnp.iscomplexobj(like):
        return jax.random.normal(key, like.shape, like.dtype)
    real = jnp.finfo(like.dtype).dtype
    parts = jax.random.normal(key, (2, *like.shape), real)
    return jax.lax.complex(parts[0], parts[1])


def make(
    texts: Sequence[str], shape: Shape, *, noise: float, bank: int, seed: Sequence[int]
) -> Degradation:
    """Sample the banks of operators.

    texts: one spec per kind, as parsed by `operators.parsing`. shape: of the images. bank: number
    of operators per kind. Invalid values raise a ValueError that starts with "operators: ".
    """
    banks = []
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"operators: {text!r} is not a string")
        try:
            rng = np.random.default_rng([*seed, number])
            banks.append(_bank(parsing.parse(text), shape, rng, bank))
        except ValueError as error:
            raise ValueError(f"operators: {text!r}: {error}") from error
    return Degradation(tuple(banks), noise)


def _bank(options: dict[str, Any], shape: Shape, rng: np.random.Generator, count: int) -> Bank:
    """Operators of one kind; a single one if nothing is random."""
    make_one = functools.partial(operators.make, options.pop("name"), shape, rng, **options)
    first = make_one()
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    jax.eval_shape(lambda x: as_image(first, first.forward(x), shape), image)  # or raises
    found = [first]
    while len(found) < count and (len(found) == 1 or not _same(found[0], found[1])):
        found.append(make_one())
    if len(found) > 1 and _same(found[0], found[1]):
        found = found[:1]
    return Bank(jax.tree.map(lambda *arrays: _packed(np.stack(arrays)), *found), len(found))


def _same(one: Operator, other: Operator) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


def _packed(a: np.ndarray) -> np.ndarray:
    """Binary masks as bytes: they are constants of the compiled program."""
    return a.astype(np.uint8) if np.isin(a, (0, 1)).all() else a


@dataclasses.dataclass(frozen=True)
class Degraded:
    """A `Source` whose examples have an additional "hint", fixed per example."""

    source: Source
    degradation: Degradation
    seed: int

    def __len__(self):
        return len(self.source)

    def example(self, index: int, rng: np.random.Generator | None = None) -> Example:
        found = self.source.example(index, rng)
        return found | {"hint": np.asarray(self._hint(found["image"], index))}

    @functools.cached_property
    def _hint(self):
        @jax.jit
        def hint(image, index):
            key = jax.random.fold_in(jax.random.key(self.seed), index)
            return self.degradation(from_uint8(image)[None], key[None])[0]

        return hint
