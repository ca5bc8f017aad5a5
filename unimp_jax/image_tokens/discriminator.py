"""PatchGAN discriminator (Isola et al. 2017, arXiv:1611.07004) for image patches, and its hinge loss.

As in pix2pix and taming-transformers: 4 x 4 convolutions with batch norm and leaky ReLU halve the image `layers` times,
and two more keep its size. Norms use the statistics of the global batch on every device.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

EPS = 1e-5
LEAK = 0.2


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Architecture of the discriminator."""

    channels: int = 64
    """Channels of the first convolution; they double up to eight times as many."""
    layers: int = 3
    """Number of times that an image is halved."""

    def __post_init__(self) -> None:
        if min(self.channels, self.layers) < 1:
            raise ValueError(f"discriminator: channels and layers must be at least 1: {self}")


class BatchNorm(nnx.Module):
    """Batch norm that always uses the statistics of the batch, as in training."""

    def __init__(self, channels: int, rngs: nnx.Rngs):
        self.scale = nnx.Param(1 + 0.02 * jax.random.normal(rngs.params(), (channels,)))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        centred = x_BHWC - x_BHWC.mean(axis=(0, 1, 2))
        variance_C = jnp.square(centred).mean(axis=(0, 1, 2))
        return centred * jax.lax.rsqrt(variance_C + EPS) * self.scale[...] + self.bias[...]


class Discriminator(nnx.Module):
    """Maps images to one logit per patch, above 0 if it looks real."""

    def __init__(self, config: DiscriminatorConfig, *, rngs: nnx.Rngs):
        widths = [config.channels * min(2**n, 8) for n in range(config.layers + 1)]
        drawn = nnx.initializers.normal(0.02)

        def conv(inputs: int, outputs: int, strides: int, bias: bool) -> nnx.Conv:
            return nnx.Conv(
                inputs, outputs, (4, 4), strides, padding=1, use_bias=bias, kernel_init=drawn, rngs=rngs
            )  # fmt: skip

        self.conv_in = conv(3, widths[0], 2, True)
        strides = [2] * (config.layers - 1) + [1]
        pairs = zip(widths, widths[1:], strides, strict=False)
        self.convs = nnx.List([conv(before, after, stride, False) for before, after, stride in pairs])
        self.norms = nnx.List([BatchNorm(width, rngs) for width in widths[1:]])
        self.conv_out = conv(widths[-1], 1, 1, True)

    def __call__(self, images_BHW3: jax.Array) -> jax.Array:
        """Returns logits, [B, rows of patches, columns of patches]."""
        x = nnx.leaky_relu(self.conv_in(images_BHW3), LEAK)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.leaky_relu(norm(conv(x)), LEAK)
        return jnp.squeeze(self.conv_out(x), axis=-1)


def hinge(real: jax.Array, made: jax.Array) -> jax.Array:
    """Returns the discriminator's hinge loss for its logits of real and reconstructed images."""
    return 0.5 * (nnx.relu(1 - real).mean() + nnx.relu(1 + made).mean())
