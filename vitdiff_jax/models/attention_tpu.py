"""Softmax attention on a TPU in XLA's own operations: a few heads at a time, scores in the VMEM.

With Q, K, V [K, N] of one head, c = 1 / sqrt(K) and the sums over keys,

    S = K^T Q,   P = exp(c (S - top)),   top = max S,   O = V P / total,   total = sum P

    P' = P / total,   dV = dO P'^T,   dS = c P' (V^T dO - sum(O dO)),   dQ = K dS,   dK = Q dS^T

S of the heads in one part stays in the VMEM, where a maximum over it is free within the product; P
is never kept, but computed again from S, top and total. A row of ones below V makes `total` in the
same product. Keys lie in sublanes and queries in lanes, so that sums over keys are of registers.

By the compiler's count for a v5e, DiT-XL's (32 images, 16 heads [72, 256]) takes 0.43 million
cycles forward and 1.0 backward; products with S in the main memory 1.1 and 1.4, and plain
automatic differentiation, which keeps S in float32, 3.7 together.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

PART = 36 * 2**20
"""Bytes of scores in float32 at a time, of a v5e's 128 MiB: twice as many spill (20 % slower)."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None, cut: int = 1
) -> jax.Array:
    """q, k, v and the result: [B, H, K, N]; mask [B, N]: tokens to look at.

    cut: how many devices the batch is cut over.
    """
    return _attention_fwd(q, k, v, mask, cut)[0]


def _attention_fwd(q, k, v, mask, cut):
    def forward(q, k, v):
        scores = _scores(q, k, mask)
        top = scores.max(2, keepdims=True)  # [B, h, 1, N]
        scores = jnp.exp((scores - top) / math.sqrt(q.shape[2])).astype(v.dtype)
        ones = jnp.ones_like(v[:, :, :1])
        out = _product("bhmn,bhkm->bhkn", scores, jnp.concatenate([v, ones], 2))
        out, total = out[:, :, :-1], out[:, :, -1:]
        return (out / total).astype(v.dtype), top, jnp.log(total)

    out, top, log_total = _by_parts(forward, cut, q, k, v)
    return out, (q, k, v, mask, out, top, log_total)


def _attention_bwd(cut, saved, d_out):
    q, k, v, mask, *of_output = saved

    def backward(q, k, v, d_out, out, top, log_total):
        c = 1 / math.sqrt(q.shape[2])
        # Else the exponential goes into the products that need it, and is computed twice.
        scores = jax.lax.optimization_barrier(_scores(q, k, mask))
        scores = jnp.exp(c * (scores - top) - log_total).astype(v.dtype)
        dv = _product("bhmn,bhkn->bhkm", scores, d_out)
        inner = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(2, keepdims=True)
        slopes = c * (_product("bhkn,bhkm->bhmn", d_out, v) - inner)
        slopes = (scores * slopes).astype(v.dtype)  # dS [B, h, M, N]
        dq = _product("bhmn,bhkm->bhkn", slopes, k)
        dk = _product("bhmn,bhkn->bhkm", slopes, q)
        return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)

    return *_by_parts(backward, cut, q, k, v, d_out, *of_output), None


attention.defvjp(_attention_fwd, _attention_bwd)


def _product(equation: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(equation, *operands, preferred_element_type=jnp.float32)


def _scores(q, k, mask):
    """Float32 [B, h, M, N], keys before queries."""
    scores = _product("bhkn,bhkm->bhmn", q, k)
    # Finite: all may be masked.
    return scores if mask is None else jnp.where(mask[:, None, :, None], scores, -1e30)


def _by_parts(f: Callable, cut: int, *operands: jax.Array) -> tuple[jax.Array, ...]:
    """f of a few heads [B, h, ...] of the operands at a time, one part after the other."""
    batch, heads, _, tokens = operands[0].shape
    bytes_of_one = batch // cut * tokens**2 * 4
    size = max(
        i for i in range(1, heads + 1) if heads % i == 0 and (i * bytes_of_one <= PART or i == 1)
    )
    parts = []
    for first in range(0, heads, size):
        part = [jax.lax.slice_in_dim(a, first, first + size, axis=1) for a in operands]
        if parts:  # all at once do not fit in the VMEM (20 % slower)
            part, _ = jax.lax.optimization_barrier((part, parts[-1][0][:1, :1, :1, :1]))
        parts.append(f(*part))
    return tuple(jnp.concatenate(pieces, 1) for pieces in zip(*parts, strict=True))


def halves_swapped(x: jax.Array) -> jax.Array:
    """x [B, H, K, N] with the halves of its third axis in each other's place.

    As a product with a permutation matrix, exact: the halves of queries and keys of JiT-B (32
    images, 12 heads [64, 288]) as slices take 1.3 million cycles more, forward and backward.
    """
    size = x.shape[2]
    swap = jnp.roll(jnp.eye(size, dtype=x.dtype), size // 2, axis=0)
    return jnp.einsum("bhkn,kj->bhjn", x, swap, precision="highest")
