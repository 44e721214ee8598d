"""Softmax attention on a TPU in plain XLA operations: a few heads at a time, scores in VMEM.

With Q, K, V [K, N] of one head, c = 1 / sqrt(K) and sums over keys,

    S = K^T Q,   P = exp(c (S - top)),   top = max S,   O = V P / total,   total = sum P

    P' = P / total,   dV = dO P'^T,   dS = c P' (V^T dO - sum(O dO)),   dQ = K dS,   dK = Q dS^T

S of the heads in one chunk stays in VMEM, where its maximum is fused into the product; P is never
stored but recomputed from S, top and total. A row of ones below V yields `total` from the same
product. Keys lie in sublanes and queries in lanes, so that sums over keys reduce whole registers.

For DiT-XL (32 images, 16 heads of [72, 256], v5e, compiler's estimate) this takes 0.43 million
cycles forward and 1.0 backward; with S in main memory 1.1 and 1.4, and plain automatic
differentiation, which keeps S in float32, takes 3.7 in total.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

CHUNK = 36 * 2**20
"""Bytes of float32 scores per chunk, of a v5e's 128 MiB: twice as many spill (20 % slower)."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None, shards: int = 1
) -> jax.Array:
    """q, k, v and the result: [B, H, K, N]; mask [B, N]: True for tokens to attend to.

    shards: the number of devices that the batch is sharded over.
    """
    return _attention_fwd(q, k, v, mask, shards)[0]


def _attention_fwd(q, k, v, mask, shards):
    def forward(q, k, v):
        scores = _scores(q, k, mask)
        top = scores.max(2, keepdims=True)  # [B, h, 1, N]
        scores = jnp.exp((scores - top) / math.sqrt(q.shape[2])).astype(v.dtype)
        ones = jnp.ones_like(v[:, :, :1])
        out = _product("bhmn,bhkm->bhkn", scores, jnp.concatenate([v, ones], 2))
        out, total = out[:, :, :-1], out[:, :, -1:]
        return (out / total).astype(v.dtype), top, jnp.log(total)

    out, top, log_total = _in_chunks(forward, shards, q, k, v)
    return out, (q, k, v, mask, out, top, log_total)


def _attention_bwd(shards, saved, d_out):
    q, k, v, mask, *of_output = saved

    def backward(q, k, v, d_out, out, top, log_total):
        c = 1 / math.sqrt(q.shape[2])
        # Otherwise the exponential is fused into both products that use it and computed twice.
        scores = jax.lax.optimization_barrier(_scores(q, k, mask))
        scores = jnp.exp(c * (scores - top) - log_total).astype(v.dtype)
        dv = _product("bhmn,bhkn->bhkm", scores, d_out)
        inner = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(2, keepdims=True)
        slopes = c * (_product("bhkn,bhkm->bhmn", d_out, v) - inner)
        slopes = (scores * slopes).astype(v.dtype)  # dS [B, h, M, N]
        dq = _product("bhmn,bhkm->bhkn", slopes, k)
        dk = _product("bhmn,bhkn->bhkm", slopes, q)
        return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)

    return *_in_chunks(backward, shards, q, k, v, d_out, *of_output), None


attention.defvjp(_attention_fwd, _attention_bwd)


def _product(equation: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(equation, *operands, preferred_element_type=jnp.float32)


def _scores(q, k, mask):
    """Float32 [B, h, M, N], keys before queries."""
    scores = _product("bhkn,bhkm->bhmn", q, k)
    # Finite, as all tokens may be masked.
    return scores if mask is None else jnp.where(mask[:, None, :, None], scores, -1e30)


def _in_chunks(f: Callable, shards: int, *operands: jax.Array) -> tuple[jax.Array, ...]:
    """Apply f to a few heads [B, h, ...] of the operands at a time, one chunk after the other."""
    batch, heads, _, tokens = operands[0].shape
    head_bytes = batch // shards * tokens**2 * 4
    size = max(
        i for i in range(1, heads + 1) if heads % i == 0 and (i * head_bytes <= CHUNK or i == 1)
    )
    parts = []
    for first in range(0, heads, size):
        part = [jax.lax.slice_in_dim(a, first, first + size, axis=1) for a in operands]
        if parts:  # in order: together they do not fit in VMEM (20 % slower)
            part, _ = jax.lax.optimization_barrier((part, parts[-1][0][:1, :1, :1, :1]))
        parts.append(f(*part))
    return tuple(jnp.concatenate(pieces, 1) for pieces in zip(*parts, strict=True))


def halves_swapped(x: jax.Array) -> jax.Array:
    """x [B, H, K, N] with the two halves of its third axis swapped.

    An exact product with a permutation matrix: slicing and concatenating the queries and keys of
    JiT-B (32 images, 12 heads of [64, 288]) takes 1.3 million cycles more, forward and backward.
    """
    size = x.shape[2]
    swap = jnp.roll(jnp.eye(size, dtype=x.dtype), size // 2, axis=0)
    return jnp.einsum("bhkn,kj->bhjn", x, swap, precision="highest")
