"""Conditioning on classes, attributes, text and images, all by one mechanism.

`cond` is a dict of arrays, each with a null value; training replaces the true value by it at random
(condition dropout), as classifier-free guidance (arXiv:2207.12598) requires:

    label      int [B]             class index                                   null: -1
    attributes int [B, K]          1 present, 0 absent                           null: -1, for each
    text       int [B, L]          UTF-8 bytes, padded with -1                   null: -1
    embedding  float [B, L, W]     output of a frozen text encoder, padded by 0  null: 0
    hint       float [B, H, W, C]  an image, as additional input channels        null: 0

`sizes` names the conditions of a model with their static sizes: {"label": (1000,), "text": (128,)}.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitdiff_jax.models import attention as attention_lib
from vitdiff_jax.models import layers

Cond = dict[str, jax.Array]
Sizes = Mapping[str, tuple[int, ...]]

NULL = {"label": -1, "attributes": -1, "text": -1, "embedding": 0, "hint": 0}
BYTES_PER_TOKEN = 4


def sizes_of(conditions: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """`sizes` from the conditions of a data set, see `data.pipeline.Dataset`."""
    make = {
        "label": lambda names: (len(names),),
        "attributes": lambda names: (len(names),),
        "text": lambda length: (length,),
        "embedding": lambda about: (about["length"], about["width"]),
        "hint": lambda channels: (channels,),
    }
    return {name: make[name](value) for name, value in conditions.items()}


def null_cond(cond: Cond) -> Cond:
    """The null condition of the same shapes."""
    return {name: jnp.full_like(value, NULL[name]) for name, value in cond.items()}


def null_batch(sizes: Sizes, batch: int, height: int, width: int) -> Cond:
    """The null condition for a batch of images of this height and width."""
    shapes = {
        "label": (), "attributes": sizes.get("attributes", ()), "text": sizes.get("text", ()),
        "embedding": sizes.get("embedding", ()), "hint": (height, width, *sizes.get("hint", ())),
    }  # fmt: skip
    kinds = {"label": jnp.int32, "attributes": jnp.int8, "text": jnp.int16}
    return {
        name: jnp.full((batch, *shapes[name]), NULL[name], kinds.get(name, jnp.float32))
        for name in sizes
    }


def drop(cond: Cond, keys: jax.Array, rate: float) -> Cond:
    """Condition dropout, with one key per example [B].

    All conditions are dropped together with probability `rate`; of several, each also by itself.
    """
    together = jax.vmap(jax.random.uniform)(keys) < rate

    def dropped(i):
        if len(cond) == 1:
            return together
        alone = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, i)))(keys)
        return together | (alone < rate)

    null = null_cond(cond)
    return {
        name: jnp.where(dropped(i).reshape(-1, *[1] * (value.ndim - 1)), null[name], value)
        for i, (name, value) in enumerate(sorted(cond.items()))
    }


def with_hint(x: jax.Array, sizes: Sizes, cond: Cond) -> jax.Array:
    """Images [B, H, W, C] with the hint concatenated along the channels, where there is one."""
    return jnp.concatenate([x, cond["hint"]], -1) if "hint" in sizes else x


def check(sizes: Sizes, text_width: int) -> None:
    """Raise `ValueError("<option>: ...")` for an invalid text encoder."""
    if text_width % 2 or (text_width > 64 and text_width % 64):
        raise ValueError(f"text_width: {text_width} is neither even up to 64 nor a multiple of 64")
    if "text" in sizes and sizes["text"][0] % BYTES_PER_TOKEN:
        raise ValueError(
            f"conditions: texts of {sizes['text'][0]} bytes are not a multiple of {BYTES_PER_TOKEN}"
        )


class Embedding(nn.Module):
    """Conditions as (vector [B, D], tokens [B, M, D], mask [B, M]), each None where it is absent.

    The vector is the sum of the label and attribute embeddings and the mean text token; the tokens
    are those of the text, valid where the mask is True.
    """

    sizes: Sizes
    width: int
    dtype: jnp.dtype
    text_width: int = 256
    text_depth: int = 4

    @nn.compact
    def __call__(self, cond: Cond):
        vectors, tokens, mask = [], None, None
        if "label" in self.sizes:
            label = layers.LabelEmbedding(self.sizes["label"][0], self.width, name="label")
            vectors.append(label(cond["label"]))
        if "attributes" in self.sizes:
            vectors.append(AttributeEmbedding(self.width, name="attributes")(cond["attributes"]))
        for name in ("text", "embedding"):
            if name not in self.sizes:
                continue
            if name == "text":
                encoder = TextEncoder(self.text_width, self.text_depth, self.dtype, name="text")
                found, valid = encoder(cond["text"])
            else:
                found, valid = cond["embedding"], jnp.any(cond["embedding"] != 0, -1)
            found = layers.rms_norm(found.astype(self.dtype), jnp.ones(()), jnp.zeros(()))
            found = layers.Dense(self.width, dtype=self.dtype, name=f"{name}_out")(found)
            tokens = found if tokens is None else jnp.concatenate([tokens, found], 1)  # [B, M, D]
            mask = valid if mask is None else jnp.concatenate([mask, valid], 1)  # [B, M]
        if tokens is not None:
            weight = mask / jnp.maximum(mask.sum(1, keepdims=True), 1)
            vectors.append(jnp.einsum("bm,bmd->bd", weight, tokens.astype(jnp.float32)))
        return sum(vectors[1:], vectors[0]) if vectors else None, tokens, mask


class AttributeEmbedding(nn.Module):
    """Attributes [B, K] (1, 0, or -1 for null) to the sum [B, width] of their embeddings."""

    width: int

    @nn.compact
    def __call__(self, attributes: jax.Array) -> jax.Array:
        count = attributes.shape[-1]
        table = self.param("table", layers.small_normal, (2 * count, self.width))
        one_hot = jnp.concatenate([attributes == 1, attributes == 0], -1)  # [B, 2K]
        return one_hot.astype(jnp.float32) @ table


class TextEncoder(nn.Module):
    """Bytes [B, L] to tokens [B, L/4, width] and their mask: a small, jointly trained Transformer.

    A strided convolution merges four bytes and their neighbours into one token before the blocks,
    as in CANINE (arXiv:2103.06874): no vocabulary, and a quarter of the sequence length.
    """

    width: int
    depth: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        valid = text >= 0
        h = nn.Embed(256, self.width, embedding_init=layers.small_normal, name="bytes")(
            jnp.maximum(text, 0)
        )
        h = jnp.where(valid[..., None], h, 0).astype(self.dtype)  # [B, L, D]
        stride = BYTES_PER_TOKEN
        h = nn.Conv(self.width, (2 * stride,), (stride,), dtype=self.dtype, name="merge")(h)
        mask = valid.reshape(len(text), -1, stride).any(-1)  # [B, L/4]
        h = h + self.param("positions", layers.small_normal, h.shape[1:]).astype(self.dtype)
        heads = max(1, self.width // 64)
        angles = jnp.zeros((self.width // heads // 2, h.shape[1]))

        def norm(y, name):
            weight = self.param(name, nn.initializers.ones, (self.width,))
            return layers.rms_norm(y, weight, jnp.zeros(()))

        for i in range(self.depth):
            attention = attention_lib.Attention(heads, self.dtype, name=f"attention_{i}")
            h = h + attention(norm(h, f"norm1_{i}"), angles, mask)
            feed_forward = layers.SwiGLU(self.width * 8 // 3, self.dtype, name=f"feed_forward_{i}")
            h = h + feed_forward(norm(h, f"norm2_{i}"))
        return h, mask
