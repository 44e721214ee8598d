"""Self-attention of several heads, and what computes it: XLA, a Pallas kernel or cuDNN.

Attention is head-major: queries, keys and values are [B, H, K, N], so that no transpose stands
between the projection and the two products, and a head size that is not a multiple of 128 needs no
padding on a TPU. The weights of their projections are [H K, D], a row for each output: the gradient
comes out of its product so. As [D, H, K] they are padded to 128 in K, and copied: by the compiler's
count DiT-XL's step on a v5e (32 images) took 164.6 ms, and takes 159.7.

    xla     products and a softmax, anywhere; the scores [B, H, N, N] go through the memory. On
            TPUs `attention_tpu`, which has no forward-mode derivative. (DiT-XL on v5e:2x2, by the
            compiler's count: MFU 0.627, where pallas has 0.733)
    pallas  `attention_kernel`, for TPUs: the scores stay on the chip. It has no forward-mode
            derivative. Elsewhere it is interpreted, slowly
    cudnn   flash attention of NVIDIA's library: GPUs, bfloat16, no mask, an even number of tokens.
            (JiT-B/16, 128 images on an H200: 56.9 ms a step, by xla 71.1)
    auto    pallas on TPUs, cudnn on GPUs from Ampere on, else xla. (A plan for GPUs that are not
            there has no cuDNN, and is one of xla.)

Where a kernel cannot take what it is given (its size, a mask), it is xla. XLA does not cut a kernel
over devices by itself. Under jit on several, call or lower the program inside `jax.set_mesh(mesh)`,
with a mesh that cuts the batch over all its axes; without that, auto is xla. pmap needs nothing.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitdiff_jax.models import attention_kernel, attention_tpu
from vitdiff_jax.models.attention_kernel import Turn
from vitdiff_jax.models.layers import EPSILON, device_kind, on_gpu, spread, xavier, zeros

CHOICES = ("auto", "xla", "pallas", "cudnn")


def rotary_angles(rows: int, cols: int, head_dim: int, prefix: int = 0) -> jax.Array:
    """Angles [head_dim/2, prefix + rows*cols] of 2-D rotary positions (arXiv:2104.09864, in 2-D).

    The first half of the frequencies turns with the row, the second with the column. The
    `prefix` tokens that stand before the patches are not turned. `head_dim` must divide by 4.
    """
    quarter = head_dim // 4
    frequencies = 10000.0 ** (-jnp.arange(quarter) / quarter)
    row, col = jnp.divmod(jnp.arange(rows * cols), cols)
    angles = jnp.concatenate([frequencies[:, None] * row, frequencies[:, None] * col])
    return jnp.pad(angles, ((0, 0), (prefix, 0)))  # [K/2, N]


def norm_rotate(x: jax.Array, scale: jax.Array, angles: jax.Array, axis: int = 2) -> jax.Array:
    """RMSNorm over the head axis times `scale` [K], then rotary positions.

    x: [B, H, K, N], or with axis 3 [B, N, H, K]. Turns each pair (x[i], x[i + K/2]) by its angle
    [K/2, N]. Scale and angles are multiplied first, as small tables, so that the big array is read
    and written once.
    """
    if device_kind().startswith("TPU"):
        swapped = attention_tpu.halves_swapped(x)
    else:
        swapped = jnp.roll(x, x.shape[axis] // 2, axis)
    x, swapped = x.astype(jnp.float32), swapped.astype(jnp.float32)
    norm = jax.lax.rsqrt(jnp.mean(x * x, axis, keepdims=True) + EPSILON)  # 1 in place of K
    real, imag = jnp.split(scale[:, None], 2)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    own, other = (
        jnp.concatenate([real * cos, imag * cos]),
        jnp.concatenate([-imag * sin, real * sin]),
    )
    if axis == 3:
        own, other = own.T[:, None], other.T[:, None]  # [N, 1, K]
    return norm * (x * own + swapped * other)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    turn: Turn | None = None,
    mask: jax.Array | None = None,
    by: str = "xla",
) -> jax.Array:
    """Softmax attention; q, k, v and the result are [B, H, K, N].

    turn: (scales [K] of the norms of q and k, angles [K/2, N]), see `norm_rotate`. mask [B, N]:
    tokens to look at. by: one of CHOICES.
    """
    by = chosen(by, q.shape, q.dtype, mask is not None)
    if by == "pallas":
        interpret = not device_kind().startswith("TPU")
        return attention_kernel.attention(q, k, v, turn, mask, _batch_axes(), interpret)
    if by == "cudnn":
        return _by_cudnn(q, k, v, turn)
    if turn is not None:
        q = norm_rotate(q, turn[0], turn[2]).astype(q.dtype)
        k = norm_rotate(k, turn[1], turn[2]).astype(k.dtype)
    if device_kind().startswith("TPU"):
        cut = math.prod(jax.sharding.get_abstract_mesh().shape[a] for a in _batch_axes())
        return attention_tpu.attention(q, k, v, mask, cut)
    return _by_xla(q, k, v, mask)


def chosen(by: str, shape: tuple[int, ...], dtype: jnp.dtype, masked: bool) -> str:
    """xla, pallas or cudnn for operands of this shape [B, H, K, N], where it is compiled now."""
    batch, heads, head_dim, tokens = shape
    kind, mesh = device_kind(), jax.sharding.get_abstract_mesh()
    if by == "auto":
        cannot_be_cut = mesh.empty and jax.device_count() > 1
        on_tpu = kind.startswith("TPU") and not cannot_be_cut
        by = "pallas" if on_tpu else "cudnn" if _has_cudnn() else "xla"
    if by == "pallas":
        size = attention_kernel.steps(heads, head_dim, tokens, dtype.itemsize)
        takes = size is not None and batch % math.prod(mesh.shape[a] for a in _batch_axes()) == 0
        return by if takes else "xla"
    if by == "cudnn":
        fits = head_dim % 8 == 0 and head_dim <= 128 and tokens % 2 == 0
        takes = fits and dtype == jnp.bfloat16 and not masked
        return by if takes and kind.startswith("NVIDIA") else "xla"
    return by


def _has_cudnn() -> bool:
    """Whether this machine's GPU is one that cuDNN's flash attention runs on: from Ampere on."""
    device = jax.devices()[0]
    return device.platform == "gpu" and float(getattr(device, "compute_capability", 0)) >= 8


def _batch_axes() -> tuple[str, ...]:
    """Axes of the mesh in use over which XLA, not the caller, cuts the batch."""
    mesh = jax.sharding.get_abstract_mesh()
    auto = jax.sharding.AxisType.Auto
    return tuple(a for a, kind in zip(mesh.axis_names, mesh.axis_types) if kind == auto)


def _by_xla(q, k, v, mask):
    # Normalised after the product with the values: one division per output, not per pair of tokens.
    scores = jnp.einsum("bhkn,bhkm->bhnm", q, k, preferred_element_type=jnp.float32)
    scores = scores / math.sqrt(q.shape[2])
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, -1e30)  # finite: all may be masked
    scores = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = scores.sum(-1)[:, :, None]  # [B, H, 1, N]
    out = jnp.einsum("bhnm,bhkm->bhkn", scores.astype(v.dtype), v)
    return (out / total).astype(v.dtype)


def _by_cudnn(q, k, v, turn):
    q, k, v = (a.transpose(0, 3, 1, 2) for a in (q, k, v))  # [B, N, H, K]
    if turn is not None:
        q = norm_rotate(q, turn[0], turn[2], 3).astype(q.dtype)
        k = norm_rotate(k, turn[1], turn[2], 3).astype(k.dtype)
    out = jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    return out.transpose(0, 2, 3, 1)


class Attention(nn.Module):
    """Self-attention. [B, N, D] -> [B, N, D].

    With `angles` [K/2, N]: q/k RMSNorm per head and rotary positions; None: neither, the plain one.
    bias: of queries, keys and values; the output always has one. by: one of CHOICES.
    """

    heads: int
    dtype: jnp.dtype
    bias: bool = True
    by: str = "xla"

    @nn.compact
    def __call__(
        self, x: jax.Array, angles: jax.Array | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        width = x.shape[-1]
        head_dim = width // self.heads
        # The published initialisation is Xavier on the fused [D, 3D] matrix; this is its variance.
        init = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")
        heads = (self.heads, head_dim)

        def project(name):
            kernel = self.param(f"{name}_kernel", init, (width, width)).astype(self.dtype)
            bias = self.param(f"{name}_bias", zeros, (width,)) if self.bias else jnp.zeros(width)
            bias = bias.astype(self.dtype)
            if on_gpu():  # cuDNN's [B, N, H, K], which takes the transposition back
                y = x.reshape(-1, width) @ kernel.T + bias
                return y.reshape(*x.shape[:2], *heads).transpose(0, 2, 3, 1)
            y = jnp.einsum("bnd,hkd->bhkn", x, kernel.reshape(*heads, width))  # [B, H, K, N]
            if not self.bias:
                return y
            return y + spread(bias.reshape(1, *heads, 1), y.shape)

        def scale(name):
            return self.param(f"{name}_norm", nn.initializers.ones, (head_dim,))

        # The order decides what the first parameters are drawn from.
        if angles is None:
            q, k, turn = project("q"), project("k"), None
        else:
            (q, scale_q), (k, scale_k) = [(project(name), scale(name)) for name in "qk"]
            turn = (scale_q, scale_k, angles)
        y = attend(q, k, project("v"), turn, mask, self.by)
        kernel = self.param("out_kernel", xavier, (width, width)).astype(self.dtype)
        bias = self.param("out_bias", zeros, (width,)).astype(self.dtype)
        if on_gpu():
            out = y.transpose(0, 3, 1, 2).reshape(-1, width) @ kernel + bias
            return out.reshape(x.shape)
        out = jnp.einsum("bhkn,hkd->bnd", y, kernel.reshape(*heads, width))
        return out + spread(bias[None, None], out.shape)
