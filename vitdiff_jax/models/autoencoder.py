"""KL-f8, the autoencoder of latent diffusion, as in Stable Diffusion (arXiv:2112.10752).

    x [B, H, W, 3] -> encoder -> mean, log-variance [B, H/8, W/8, 4];    z -> decoder -> x

Each level of `channels` is a few residual blocks; between levels the feature maps are down- or
upsampled by 2. The middle block has self-attention over all positions. Latents are multiplied by
`scaling_factor`, to about unit variance: code outside this file, like the published latent
denoisers, only sees scaled latents.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitdiff_jax.models import attention as attention_lib
from vitdiff_jax.models import layers

EPSILON = 1e-6  # of GroupNorm
LOGVAR_MIN, LOGVAR_MAX = -30.0, 20.0  # of the log-variance before scaling


class GroupNorm(nn.Module):
    """GroupNorm with learned scale and bias. [B, H, W, C] -> same."""

    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", layers.zeros, x.shape[-1:])
        return layers.group_norm(x, self.groups, scale, bias, EPSILON)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); a 1x1 shortcut where the channels change."""

    channels: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.silu(GroupNorm(self.groups, name="norm1")(x))
        y = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="conv1")(y)
        y = nn.silu(GroupNorm(self.groups, name="norm2")(y))
        y = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="conv2")(y)
        if x.shape[-1] != self.channels:
            x = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="shortcut")(x)
        return x + y


class Middle(nn.Module):
    """A residual block, single-head self-attention over all positions, a residual block."""

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        x = ResidualBlock(c, self.groups, self.dtype, name="block_0")(x)
        y = GroupNorm(self.groups, name="norm")(x).reshape(b, h * w, c)  # [B, N, C]
        y = attention_lib.Attention(1, self.dtype, name="attention")(y)
        x = x + y.reshape(b, h, w, c)
        return ResidualBlock(c, self.groups, self.dtype, name="block_1")(x)


class Head(nn.Module):
    """norm, silu, 3x3 convolution: the last layers of encoder and decoder, in float32."""

    channels: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.silu(GroupNorm(self.groups, name="norm")(x.astype(jnp.float32)))
        return nn.Conv(self.channels, (3, 3), name="conv")(y)


class Encoder(nn.Module):
    """Images [B, H, W, 3] -> [B, H/f, W/f, outputs], f = 2^(levels - 1)."""

    channels: tuple[int, ...]
    blocks: int
    outputs: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.Conv(self.channels[0], (3, 3), dtype=self.dtype, name="in")(x)
        for i, channels in enumerate(self.channels):
            for j in range(self.blocks):
                name = f"level_{i}_block_{j}"
                h = ResidualBlock(channels, self.groups, self.dtype, name=name)(h)
            if i < len(self.channels) - 1:  # padded at the bottom and right only, as published
                h = nn.Conv(
                    channels, (3, 3), (2, 2), ((0, 1), (0, 1)), dtype=self.dtype, name=f"halve_{i}"
                )(h)
        h = Middle(self.groups, self.dtype, name="middle")(h)
        return Head(self.outputs, self.groups, name="out")(h)


class Decoder(nn.Module):
    """Latents [B, h, w, C] -> images [B, f h, f w, 3]; levels in reverse, with one more block."""

    channels: tuple[int, ...]
    blocks: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        h = nn.Conv(self.channels[-1], (3, 3), dtype=self.dtype, name="in")(z)
        h = Middle(self.groups, self.dtype, name="middle")(h)
        for i in reversed(range(len(self.channels))):
            channels = self.channels[i]
            for j in range(self.blocks + 1):
                name = f"level_{i}_block_{j}"
                h = ResidualBlock(channels, self.groups, self.dtype, name=name)(h)
            if i:
                h = h.repeat(2, 1).repeat(2, 2)  # nearest neighbour
                h = nn.Conv(channels, (3, 3), dtype=self.dtype, name=f"double_{i}")(h)
        return Head(3, self.groups, name="out")(h)


class Autoencoder(nn.Module):
    """Images [B, H, W, 3] in [-1, 1] to latents [B, H/f, W/f, latent_channels] and back.

    channels: per level; f = 2^(levels - 1). blocks: residual blocks per level.
    groups: of GroupNorm. scaling_factor: of the latents; SDXL's autoencoder has 0.13025.
    dtype: of convolutions and attention, "float32" or "bfloat16"; parameters are always float32.
    """

    channels: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    latent_channels: int = 4
    groups: int = 32
    scaling_factor: float = 0.18215
    dtype: str = "float32"

    @property
    def factor(self) -> int:
        """The downsampling factor f."""
        return 2 ** (len(self.channels) - 1)

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raise `ValueError("<option>: ...")` where the options do not fit images of this shape."""
        layers.check_choices(dtype=(self.dtype, ("float32", "bfloat16")))
        layers.check_minimum(
            blocks=(self.blocks, 1),
            latent_channels=(self.latent_channels, 1),
            groups=(self.groups, 1),
        )
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"channels: {self.channels} is not one positive number per level")
        if any(channels % self.groups for channels in self.channels):
            raise ValueError(f"groups: {self.groups} does not divide the channels {self.channels}")
        if not self.scaling_factor > 0:
            raise ValueError(f"scaling_factor: {self.scaling_factor} is not positive")
        height, width, channels = shape
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"channels: {len(self.channels)} levels downsample by {self.factor}, which does not"
                f" divide the {height}x{width} images"
            )
        if channels != 3:
            raise ValueError(f"images: {channels} channels; the autoencoder takes 3")

    def setup(self):
        """Create the encoder, the decoder and the projections between them."""
        dtype, doubled = jnp.dtype(self.dtype), 2 * self.latent_channels
        self.encoder = Encoder(self.channels, self.blocks, doubled, self.groups, dtype)
        self.decoder = Decoder(self.channels, self.blocks, self.groups, dtype)
        self.to_moments = nn.Conv(doubled, (1, 1))
        self.from_latent = nn.Conv(self.latent_channels, (1, 1))

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x [B, H, W, 3] in [-1, 1] -> (mean, log-variance) of the scaled latents, float32.

        Each is [B, H/f, W/f, C]; a latent is sampled as mean + exp(log_variance / 2) * noise.
        """
        moments = self.to_moments(self.encoder(x))  # [B, H/f, W/f, 2C]
        mean, log_variance = jnp.split(moments, 2, -1)
        log_variance = jnp.clip(log_variance, LOGVAR_MIN, LOGVAR_MAX)
        return mean * self.scaling_factor, log_variance + 2 * math.log(self.scaling_factor)

    def decode(self, z: jax.Array) -> jax.Array:
        """Scaled latents z [B, h, w, C] -> images [B, f h, f w, 3], about [-1, 1], float32."""
        return self.decoder(self.from_latent(z / self.scaling_factor))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Reconstruct images; `init` goes through here, so that all parameters are created."""
        return self.decode(self.encode(x)[0])
