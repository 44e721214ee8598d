"""Softmax attention on a TPU: one Pallas kernel forward, one backward (after arXiv:2205.14135).

With Q, K, V [K, N] of one head, c = log2(e) / sqrt(K) and the sums over keys,

    P = 2^(c K^T Q - top),   top = max of the exponent,   total = sum P,   O = V P / total

    dP = V^T dO',   dO' = dO / total,   dS = P (dP - sum(P dP) / total)
    dV = dO' P^T,   dQ = K dS / sqrt(K),   dK = Q dS^T / sqrt(K)

Nothing of the size of P reaches the main memory: the backward kernel computes it again from what is
saved, `top` and `total`. Keys lie in sublanes and queries in lanes, so that `top` and `total` are
sums of whole registers, and a head size that is no multiple of 128 needs no padding. RMSNorm and
rotary positions of Q and K are part of both kernels.

DiT-XL's (32 images of 16 heads [72, 256], bfloat16; v5e, the compiler's count) takes 0.18 million
cycles forward and 0.30 backward, both close to the time that its operands take from and to memory;
XLA's 1.5 and 2.2.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from vitdiff_jax.models.layers import EPSILON

VMEM = 13 * 2**20  # of the 16 MiB that a v5e's kernel may have; the rest is the compiler's
MOST_TOKENS = 2048  # the program is unrolled: its length grows with the square
MOST_WORK = 2**19  # heads * tokens^2 of one grid step; more compiles longer and runs 2 % faster

Turn = tuple[jax.Array, jax.Array, jax.Array]
"""Scales of the norms of queries and keys, [K] each, and rotary angles [K/2, N]."""


def steps(heads: int, head_dim: int, tokens: int, itemsize: int) -> tuple[int, int] | None:
    """How many heads a grid step takes, and how many queries each of its products; None: too much.

    The bound is that of the backward kernel: seven operands, twice because the next ones arrive
    during the step; P and dP of one head in float32 and in the operands' type.
    """
    if tokens > MOST_TOKENS:
        return None
    lanes, rows = -(-tokens // 128) * 128, -(-tokens // 16) * 16
    head = -(-head_dim // 16) * 16 * lanes
    for pieces in range(1, lanes // 128 + 1):
        queries = -(-lanes // (128 * pieces)) * 128
        inside = rows * queries * (8 + 2 * itemsize) + 6 * head * 4
        for taken in range(heads, 0, -1):
            fits = inside + 2 * 7 * taken * head * itemsize <= VMEM
            if heads % taken == 0 and fits and taken * tokens**2 <= max(MOST_WORK, tokens**2):
                return taken, queries
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    turn: Turn | None = None,
    mask: jax.Array | None = None,
    axes: tuple[str, ...] = (),
    interpret: bool = False,
) -> jax.Array:
    """q, k, v and the result: [B, H, K, N], bfloat16 or float32.

    turn: q and k are normed and turned first; no gradient goes to its angles. mask [B, N]: tokens
    to look at, of which each image has one. axes: of the mesh in use that cut the batch; they must
    divide it. `steps` must know how. interpret: without a TPU, slowly.
    """
    return _attention_fwd(q, k, v, turn, mask, axes, interpret)[0]


def _attention_fwd(q, k, v, turn, mask, axes, interpret):
    bias = None if mask is None else jnp.where(mask, 0.0, -1e30)[:, :, None]  # [B, N, 1]
    operands = {"q": q, "k": k, "v": v, "bias": bias}
    out, sums = _call(_forward, "attention_forward", operands, turn, axes, interpret)
    return out, (operands, turn, sums)


def _attention_bwd(axes, interpret, saved, d_out):
    operands, turn, sums = saved
    operands = operands | {"sums": sums, "d_out": d_out}
    found = _call(_backward, "attention_backward", operands, turn, axes, interpret)
    d_turn = None
    if turn is not None:
        d_scales = (d[:, :, 0].sum(0).astype(turn[0].dtype) for d in found[3:])  # [K]
        d_turn = (*d_scales, jnp.zeros_like(turn[2]))
    return *found[:3], d_turn, None


attention.defvjp(_attention_fwd, _attention_bwd)


def _call(kernel, name, operands, turn, axes, interpret):
    """Run a kernel on each device's part of `operands`; all have the batch first."""
    tables = ()
    if turn is not None:
        scale_q, scale_k, angles = turn
        tables = (scale_q[:, None], scale_k[:, None], jnp.cos(angles), jnp.sin(angles))
    call = functools.partial(_on_one_device, kernel, name, interpret)
    if not axes:
        return call(operands, tables)
    batch, whole = PartitionSpec(axes), PartitionSpec()
    # Only this is cut by hand: XLA does not know how to cut a kernel, and all else better.
    sharded = jax.shard_map(call, in_specs=(batch, whole), out_specs=batch, check_vma=False)
    return sharded(operands, tables)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))  # equal blocks are traced once
def _on_one_device(kernel, name, interpret, operands, tables):
    b, heads, head_dim, tokens = operands["q"].shape
    size = steps(heads, head_dim, tokens, operands["q"].dtype.itemsize)
    if size is None:
        raise ValueError(f"attention: the kernel does not take heads of [{head_dim}, {tokens}]")
    taken, queries = size

    def spec(a):
        if len(a.shape) == 3:
            return pl.BlockSpec((1, *a.shape[1:]), lambda i, j: (i, 0, 0))
        return pl.BlockSpec((1, taken, *a.shape[2:]), lambda i, j: (i, j, 0, 0))

    like_q = jax.ShapeDtypeStruct(operands["q"].shape, operands["q"].dtype)
    if kernel is _forward:
        outputs = [like_q, jax.ShapeDtypeStruct((b, heads, 2, tokens), jnp.float32)]
    else:
        d_scale = jax.ShapeDtypeStruct((b, head_dim, 1), jnp.float32)
        outputs = [like_q] * 3 + ([d_scale] * 2 if tables else [])
    whole = [pl.BlockSpec(a.shape, lambda i, j: (0, 0)) for a in tables]
    return pl.pallas_call(
        functools.partial(kernel, queries),
        grid=(b, heads // taken),
        in_specs=(jax.tree.map(spec, operands), tuple(whole)),
        out_specs=[spec(a) for a in outputs],
        out_shape=outputs,
        # The heads of an image come one after the other: they add to one gradient of the scales.
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name=_name(name, operands, tables),
    )(operands, tables)


def _name(name, operands, tables):
    """Says all that the program depends on, so that `kernels` finds what the program costs."""
    q = operands["q"]
    sizes = "x".join(map(str, q.shape))
    masked = "" if operands["bias"] is None else "_masked"
    return f"{name}_{sizes}_{q.dtype}" + "_turned" * bool(tables) + masked


def _forward(queries, refs, tables, out_ref, sums_ref):
    """Write the result [1, h, K, N] and (top, 1 / total), [1, h, 2, N], of h heads."""
    _, heads, _, tokens = out_ref.shape
    for h in range(heads):
        (q, _), (k, _), v = _prepared(refs, tables, h)
        for start in range(0, tokens, queries):
            part = slice(start, min(start + queries, tokens))
            s = _exponent(k, q[:, part], refs)  # [N keys, n queries]
            top = s.max(0, keepdims=True)  # [1, n]
            p = jnp.exp2(s - top)
            share = 1 / p.sum(0, keepdims=True)
            out = _dot(v, p.astype(v.dtype), 1, 0)  # [K, n]
            out_ref[0, h, :, part] = (out * share).astype(out_ref.dtype)
            sums_ref[0, h, :1, part] = top
            sums_ref[0, h, 1:, part] = share


def _backward(queries, refs, tables, dq_ref, dk_ref, dv_ref, *d_scale_refs):
    """Write the gradients [1, h, K, N] of h heads, and add to those of the scales, [1, K, 1]."""
    _, heads, head_dim, tokens = dq_ref.shape
    if tables:
        pl.when(pl.program_id(1) == 0)(functools.partial(_clear, d_scale_refs))
    scales = []
    for h in range(heads):
        (q, back_q), (k, back_k), v = _prepared(refs, tables, h)
        dq, dk, dv = [], [], []
        for start in range(0, tokens, queries):
            part = slice(start, min(start + queries, tokens))
            top, share = refs["sums"][0, h, :1, part], refs["sums"][0, h, 1:, part]  # [1, n]
            d_out = (refs["d_out"][0, h, :, part].astype(jnp.float32) * share).astype(v.dtype)
            p = jnp.exp2(_exponent(k, q[:, part], refs) - top)  # [N keys, n queries]
            dp = _dot(v, d_out, 0, 0)
            ds = (p * (dp - (p * dp).sum(0, keepdims=True) * share)).astype(v.dtype)
            dv.append(_dot(d_out, p.astype(v.dtype), 1, 1))  # [K, N]
            dk.append(_dot(q[:, part], ds, 1, 1))
            dq.append(_dot(k, ds, 1, 0))  # [K, n]
        dq, dq_scale = back_q(jnp.concatenate(dq, 1) / math.sqrt(head_dim))
        dk, dk_scale = back_k(_sum(dk) / math.sqrt(head_dim))
        for ref, d in zip((dq_ref, dk_ref, dv_ref), (dq, dk, _sum(dv)), strict=True):
            ref[0, h] = d.astype(v.dtype)
        if tables:
            scales.append((dq_scale, dk_scale))
    for ref, *d in zip(d_scale_refs, *scales):
        ref[0] += _sum(d).sum(1, keepdims=True)


def _clear(refs):
    for ref in refs:
        ref[...] = jnp.zeros_like(ref)


def _sum(parts):
    return functools.reduce(jnp.add, parts)


def _dot(a, b, axis_a, axis_b):
    return jax.lax.dot_general(
        a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=jnp.float32
    )


def _exponent(k, q, refs):
    """c K^T Q [keys, queries], and the bias [keys, 1] where there is a mask."""
    # c times q would round q once more, which large scores do not forgive: 2 % for 0.1.
    s = _dot(k, q, 0, 0) * (math.log2(math.e) / math.sqrt(q.shape[0]))
    return s if refs["bias"] is None else s + refs["bias"][0]


def _prepared(refs, tables, h):
    """(Q, its way back), (K, its way back), V of head h, [K, N].

    A way back takes a gradient, in float32, to that of the operand and of its scale, which is still
    to be summed over the tokens.
    """
    q, k, v = refs["q"][0, h], refs["k"][0, h], refs["v"][0, h]
    if not tables:
        return (q, _plain_back), (k, _plain_back), v
    scale_q, scale_k, cos, sin = (table[...] for table in tables)
    return _turned(q, scale_q, cos, sin), _turned(k, scale_k, cos, sin), v


def _plain_back(d):
    return d, None


def _turned(x, scale, cos, sin):
    """x [K, N] normed, scaled and turned, and its way back."""
    full = x.astype(jnp.float32)
    norm = jax.lax.rsqrt(jnp.mean(full * full, 0, keepdims=True) + EPSILON)  # [1, N]
    y = full * norm

    def back(d):
        d = _rotate(d, cos, -sin)
        dy = d * scale
        dx = norm * (dy - y * jnp.mean(dy * y, 0, keepdims=True))
        return dx, d * y

    return _rotate(y * scale, cos, sin).astype(x.dtype), back


def _rotate(x, cos, sin):
    """Turn each pair (x[i], x[i + K/2])."""
    real, imag = jnp.split(x, 2)
    return jnp.concatenate([real * cos - imag * sin, imag * cos + real * sin])
