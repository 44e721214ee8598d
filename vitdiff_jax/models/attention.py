"""Multi-head self-attention and its implementations: XLA, a Pallas kernel, cuDNN.

Attention is head-major: queries, keys and values are [B, H, K, N], so no transpose is needed
between the projections and the two matrix products, and a head size that is not a multiple of 128
needs no padding on a TPU. The projection weights are stored as [H K, D], one row per output, which
is the layout of their gradient. Stored as [D, H, K] they are padded to 128 in K and copied: a
DiT-XL step on a v5e (32 images, compiler's estimate) takes 164.6 ms that way, 159.7 ms this way.
On CPUs the products are faster with [B, H, N, K]: the denoiser of configs/photos.py takes 0.79 of
the time forward, 0.93 with gradients (two cores, 12 images, 2026-11-30).

    xla     matrix products and a softmax, on any device; the scores [B, H, N, N] go through main
            memory. On TPUs it is `attention_tpu`, which has no forward-mode derivative. (DiT-XL on
            v5e:2x2, compiler's estimate: MFU 0.627; pallas 0.733)
    einsum  the same without that: the only one with a forward-mode derivative on TPUs
    pallas  `attention_kernel`, for TPUs: the scores stay on the chip. No forward-mode derivative.
            On other devices the kernel is interpreted, which is slow
    cudnn   NVIDIA's flash attention: GPUs, bfloat16, no mask, an even number of tokens. (JiT-B/16,
            128 images on an H200: 56.9 ms a step; xla 71.1)
    auto    pallas on TPUs, cudnn on GPUs from Ampere on, else xla. (Ahead-of-time compilation for
            a GPU has no cuDNN and uses xla.)

Operands that a kernel does not support (size, mask) fall back to xla. XLA does not partition a
kernel by itself: under jit on several devices, call or lower the program inside
`jax.set_mesh(mesh)`, with a mesh that shards the batch over all of its axes; without a mesh, auto
is xla. pmap needs nothing.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitdiff_jax.models import attention_kernel, attention_tpu
from vitdiff_jax.models.attention_kernel import Rotary
from vitdiff_jax.models.layers import EPSILON, broadcast_to, device_kind, on_tpu, xavier, zeros

KERNELS = ("pallas", "cudnn")
IMPLEMENTATIONS = ("auto", "xla", "einsum", *KERNELS)


def rotary_angles(rows: int, cols: int, head_dim: int, prefix: int = 0) -> jax.Array:
    """Angles [head_dim/2, prefix + rows*cols] of 2-D rotary embeddings (RoPE, arXiv:2104.09864).

    The first half of the frequencies encodes the row, the second the column. The `prefix` tokens
    before the patches are not rotated. `head_dim` must be a multiple of 4.
    """
    quarter = head_dim // 4
    frequencies = 10000.0 ** (-jnp.arange(quarter) / quarter)
    row, col = jnp.divmod(jnp.arange(rows * cols), cols)
    angles = jnp.concatenate([frequencies[:, None] * row, frequencies[:, None] * col])
    return jnp.pad(angles, ((0, 0), (prefix, 0)))  # [K/2, N]


def norm_rotate(x: jax.Array, scale: jax.Array, angles: jax.Array, axis: int = 2) -> jax.Array:
    """RMSNorm over the head dimension times `scale` [K], then rotary embedding (QK-norm and RoPE).

    x: [B, H, K, N], or [B, N, H, K] with axis 3. Rotates each pair (x[i], x[i + K/2]) by its angle
    [K/2, N]. Scale and rotation are combined into small tables first, so that the large array is
    read and written once.
    """
    half = x.shape[axis] // 2
    swapped = attention_tpu.halves_swapped(x) if on_tpu() else jnp.roll(x, half, axis)
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
    rotary: Rotary | None = None,
    mask: jax.Array | None = None,
    implementation: str = "xla",
) -> jax.Array:
    """Softmax attention; q, k, v and the result are [B, H, K, N].

    rotary: (norm scales [K] of q and of k, angles [K/2, N]), see `norm_rotate`. mask [B, N]: True
    for tokens to attend to. implementation: one of IMPLEMENTATIONS.
    """
    implementation = select_implementation(implementation, q.shape, q.dtype, mask is not None)
    if implementation == "pallas":
        interpret = not on_tpu()
        return attention_kernel.attention(q, k, v, rotary, mask, _batch_axes(), interpret)
    if implementation == "cudnn":
        return _cudnn(q, k, v, rotary)
    if device_kind() == "cpu":
        return _cpu(q, k, v, rotary, mask)
    if rotary is not None:
        q = norm_rotate(q, rotary[0], rotary[2]).astype(q.dtype)
        k = norm_rotate(k, rotary[1], rotary[2]).astype(k.dtype)
    if on_tpu() and implementation == "xla":
        shards = math.prod(jax.sharding.get_abstract_mesh().shape[a] for a in _batch_axes())
        return attention_tpu.attention(q, k, v, mask, shards)
    return _xla(q, k, v, mask)


def select_implementation(
    wanted: str, shape: tuple[int, ...], dtype: jnp.dtype, masked: bool
) -> str:
    """One of IMPLEMENTATIONS but auto, for operands [B, H, K, N] on the current mesh or device."""
    batch, heads, head_dim, tokens = shape
    kind, mesh = device_kind(), jax.sharding.get_abstract_mesh()
    if wanted == "auto":
        not_partitioned = mesh.empty and jax.device_count() > 1
        kernel = on_tpu() and not not_partitioned
        wanted = "pallas" if kernel else "cudnn" if _has_cudnn() else "xla"
    if wanted == "pallas":
        size = attention_kernel.block_sizes(heads, head_dim, tokens, dtype.itemsize)
        divides = batch % math.prod(mesh.shape[a] for a in _batch_axes()) == 0
        return wanted if size is not None and divides else "xla"
    if wanted == "cudnn":
        fits = head_dim % 8 == 0 and head_dim <= 128 and tokens % 2 == 0
        supported = fits and dtype == jnp.bfloat16 and not masked
        return wanted if supported and kind.startswith("NVIDIA") else "xla"
    return wanted


def _has_cudnn() -> bool:
    """Whether this machine's GPU supports cuDNN's flash attention: Ampere or later."""
    device = jax.devices()[0]
    return device.platform == "gpu" and float(getattr(device, "compute_capability", 0)) >= 8


def _batch_axes() -> tuple[str, ...]:
    """Axes of the current mesh over which XLA, not the caller, shards the batch."""
    mesh = jax.sharding.get_abstract_mesh()
    auto = jax.sharding.AxisType.Auto
    return tuple(a for a, kind in zip(mesh.axis_names, mesh.axis_types) if kind == auto)


def _xla(q, k, v, mask):
    scores = jnp.einsum("bhkn,bhkm->bhnm", q, k, preferred_element_type=jnp.float32)
    weights, total = _softmax(scores / math.sqrt(q.shape[2]), mask)
    out = jnp.einsum("bhnm,bhkm->bhkn", weights.astype(v.dtype), v)
    return (out / total[:, :, None]).astype(v.dtype)


def _softmax(scores, mask):
    """Numerators [B, H, N, N], denominators [B, H, N]: one division per output, not per score."""
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, -1e30)  # finite: all may be masked
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    return weights, weights.sum(-1)


def _cpu(q, k, v, rotary, mask):
    q, k, v = (a.swapaxes(2, 3) for a in (q, k, v))  # [B, H, N, K]

    def rotated(x, scale, angles):
        return norm_rotate(x.swapaxes(1, 2), scale, angles, 3).swapaxes(1, 2).astype(x.dtype)

    if rotary is not None:
        q, k = rotated(q, rotary[0], rotary[2]), rotated(k, rotary[1], rotary[2])
    q = q / math.sqrt(q.shape[3])  # fewer numbers than scores
    scores = jnp.einsum("bhnk,bhmk->bhnm", q, k, preferred_element_type=jnp.float32)
    weights, total = _softmax(scores, mask)
    out = jnp.einsum("bhnm,bhmk->bhnk", weights.astype(v.dtype), v)
    return (out / total[..., None]).astype(v.dtype).swapaxes(2, 3)


def _cudnn(q, k, v, rotary):
    q, k, v = (a.transpose(0, 3, 1, 2) for a in (q, k, v))  # [B, N, H, K]
    if rotary is not None:
        q = norm_rotate(q, rotary[0], rotary[2], 3).astype(q.dtype)
        k = norm_rotate(k, rotary[1], rotary[2], 3).astype(k.dtype)
    out = jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    return out.transpose(0, 2, 3, 1)


class Attention(nn.Module):
    """Multi-head self-attention. [B, N, D] -> [B, N, D].

    With `angles` [K/2, N]: QK-norm per head (RMSNorm) and rotary embedding; None: neither.
    bias: for queries, keys and values; the output projection always has one.
    implementation: one of IMPLEMENTATIONS.
    """

    heads: int
    dtype: jnp.dtype
    bias: bool = True
    implementation: str = "xla"

    @nn.compact
    def __call__(
        self, x: jax.Array, angles: jax.Array | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        width = x.shape[-1]
        head_dim = width // self.heads
        # The variance of the published initialisation, Xavier on the fused [D, 3D] matrix.
        init = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")
        heads = (self.heads, head_dim)

        def project(name):
            kernel = self.param(f"{name}_kernel", init, (width, width)).astype(self.dtype)
            bias = self.param(f"{name}_bias", zeros, (width,)) if self.bias else jnp.zeros(width)
            bias = bias.astype(self.dtype)
            if not on_tpu():  # `attend` transposes back, and XLA removes both
                y = x.reshape(-1, width) @ kernel.T + bias
                return y.reshape(*x.shape[:2], *heads).transpose(0, 2, 3, 1)
            y = jnp.einsum("bnd,hkd->bhkn", x, kernel.reshape(*heads, width))  # [B, H, K, N]
            if not self.bias:
                return y
            return y + broadcast_to(bias.reshape(1, *heads, 1), y.shape)

        def scale(name):
            return self.param(f"{name}_norm", nn.initializers.ones, (head_dim,))

        # The order determines the random numbers that initialise each parameter.
        if angles is None:
            q, k, rotary = project("q"), project("k"), None
        else:
            (q, scale_q), (k, scale_k) = [(project(name), scale(name)) for name in "qk"]
            rotary = (scale_q, scale_k, angles)
        y = attend(q, k, project("v"), rotary, mask, self.implementation)
        kernel = self.param("out_kernel", xavier, (width, width)).astype(self.dtype)
        bias = self.param("out_bias", zeros, (width,)).astype(self.dtype)
        if not on_tpu():
            out = y.transpose(0, 3, 1, 2).reshape(-1, width) @ kernel + bias
            return out.reshape(x.shape)
        out = jnp.einsum("bhkn,hkd->bnd", y, kernel.reshape(*heads, width))
        return out + broadcast_to(bias[None, None], out.shape)
