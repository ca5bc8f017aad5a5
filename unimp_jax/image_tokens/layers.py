"""Layers of a VQGAN: residual blocks, spatial attention, downsampling and upsampling; all in float32."""

import jax
import jax.numpy as jnp
from flax import nnx

EPS = 1e-6


def conv(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Conv:
    """Returns a 3 x 3 convolution that preserves height and width."""
    return nnx.Conv(inputs, outputs, (3, 3), padding=1, rngs=rngs)


class GroupNorm(nnx.Module):
    """Group norm over each image; on a CPU 2 to 5 times as fast as `nnx.GroupNorm`."""

    def __init__(self, channels: int, groups: int):
        self.groups = groups
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        centred_BHWC = x_BHWC - self.over_groups(x_BHWC.mean(axis=(1, 2)))
        variance_B11C = self.over_groups(jnp.square(centred_BHWC).mean(axis=(1, 2)))
        return centred_BHWC * (jax.lax.rsqrt(variance_B11C + EPS) * self.scale[...]) + self.bias[...]

    def over_groups(self, means_BC: jax.Array) -> jax.Array:
        """Returns each channel's group mean. Channels are averaged first: loops over a few channels are slow."""
        B, C = means_BC.shape
        means_BG1 = means_BC.reshape(B, self.groups, C // self.groups).mean(axis=2, keepdims=True)
        return jnp.broadcast_to(means_BG1, (B, self.groups, C // self.groups)).reshape(B, 1, 1, C)


class ResidualBlock(nnx.Module):
    """Two convolutions, each after a norm and a SiLU, with a residual connection."""

    def __init__(self, inputs: int, outputs: int, groups: int, rngs: nnx.Rngs):
        self.norm1, self.conv1 = GroupNorm(inputs, groups), conv(inputs, outputs, rngs)
        self.norm2, self.conv2 = GroupNorm(outputs, groups), conv(outputs, outputs, rngs)
        self.shortcut = nnx.Linear(inputs, outputs, rngs=rngs) if inputs != outputs else None

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        y = self.conv1(jax.nn.silu(self.norm1(x_BHWC)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x_BHWC if self.shortcut is None else self.shortcut(x_BHWC))


class Attention(nnx.Module):
    """Spatial self-attention over an image, with one head as wide as the channels."""

    def __init__(self, channels: int, groups: int, rngs: nnx.Rngs):
        self.norm = GroupNorm(channels, groups)
        self.query, self.key, self.value, self.out = (nnx.Linear(channels, channels, rngs=rngs) for _ in range(4))

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        B, H, W, C = x_BHWC.shape
        y_BP1C = self.norm(x_BHWC).reshape(B, H * W, 1, C)
        mixed_BP1C = jax.nn.dot_product_attention(self.query(y_BP1C), self.key(y_BP1C), self.value(y_BP1C))
        out_BP1C: jax.Array = self.out(mixed_BP1C)
        return x_BHWC + out_BP1C.reshape(B, H, W, C)


class Middle(nnx.Module):
    """The blocks at the lowest resolution: residual block, optional attention, residual block."""

    def __init__(self, channels: int, groups: int, attention: bool, rngs: nnx.Rngs):
        self.block1 = ResidualBlock(channels, channels, groups, rngs)
        self.attention = Attention(channels, groups, rngs) if attention else None
        self.block2 = ResidualBlock(channels, channels, groups, rngs)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x_BHWC = self.block1(x_BHWC)
        return self.block2(x_BHWC if self.attention is None else self.attention(x_BHWC))


class Level(nnx.Module):
    """Residual blocks at one resolution, each followed by attention if the level has it."""

    def __init__(self, inputs: int, outputs: int, blocks: int, groups: int, attention: bool, rngs: nnx.Rngs):
        widths = [inputs] + [outputs] * (blocks - 1)
        self.blocks = nnx.List([ResidualBlock(width, outputs, groups, rngs) for width in widths])
        self.attentions = nnx.List([Attention(outputs, groups, rngs) for _ in widths if attention])

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        for number, block in enumerate(self.blocks):
            x_BHWC = block(x_BHWC)
            if self.attentions:
                x_BHWC = self.attentions[number](x_BHWC)
        return x_BHWC


def halving(channels: int, rngs: nnx.Rngs) -> nnx.Conv:
    """Returns a convolution that halves height and width, with zero padding at the bottom and right only."""
    return nnx.Conv(channels, channels, (3, 3), strides=2, padding=((0, 1), (0, 1)), rngs=rngs)


def doubled(x_BHWC: jax.Array) -> jax.Array:
    """Doubles height and width by repeating each position four times."""
    B, H, W, C = x_BHWC.shape
    return jnp.broadcast_to(x_BHWC[:, :, None, :, None], (B, H, 2, W, 2, C)).reshape(B, 2 * H, 2 * W, C)
