"""Perceptual distance of images in the features of a frozen model: LPIPS on VGG-16, or the patches of a vision tower.

LPIPS (Zhang et al. 2018, arXiv:1801.03924): at five depths, features of both images are normalised to length 1 at each
position; squared differences, weighted by channel, are summed over channels and depths and averaged over positions. For
a tower, the unweighted last hidden state is used. Images are float [B, H, W, 3] from -1 to 1; distances are means over
B.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimp_jax.image_tokens.layers import conv
from unimp_jax.model.vision import VisionTower

SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)
"""Normalisation of VGG's inputs, as given by LPIPS for pixels from -1 to 1."""
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""(channels, convolutions) of each stage of VGG-16; between two stages height and width are halved."""


class LPIPS(nnx.Module):
    """VGG-16's convolutions, and LPIPS's channel weights."""

    def __init__(self, *, rngs: nnx.Rngs):
        inputs = (3, *(width for width, _ in STAGES))
        self.stages = nnx.List([
            nnx.List([conv(before if number == 0 else width, width, rngs) for number in range(count)])
            for before, (width, count) in zip(inputs, STAGES, strict=False)
        ])  # fmt: skip
        self.weights = nnx.List([nnx.Param(jnp.ones(width)) for width, _ in STAGES])

    def features(self, images_BHW3: jax.Array) -> list[jax.Array]:
        """Returns [B, H, W, C] at the end of each stage."""
        x, seen = (images_BHW3 - SHIFT) / SCALE, list[jax.Array]()
        for number, stage in enumerate(self.stages):
            x = x if number == 0 else nnx.max_pool(x, (2, 2), (2, 2))
            for layer in stage:
                x = nnx.relu(layer(x))
            seen.append(x)
        return seen

    def distance(self, images_BHW3: jax.Array, others_BHW3: jax.Array) -> jax.Array:
        pairs = zip(self.features(images_BHW3), self.features(others_BHW3), self.weights, strict=True)
        return jnp.stack(
            [(apart(one, other) * weights[...]).sum(axis=-1).mean() for one, other, weights in pairs]
        ).sum()


def tower_distance(tower: VisionTower, images_BHW3: jax.Array, others_BHW3: jax.Array) -> jax.Array:
    """Returns the mean over patches of the squared distance between their features, normalised to length 1."""
    size, (mean, deviation) = tower.config.image_size, tower.config.mean_and_deviation

    def features(images_BHW3: jax.Array) -> jax.Array:
        resized = jax.image.resize(images_BHW3, (len(images_BHW3), size, size, 3), "bilinear")
        return tower(((resized + 1) / 2 - mean) / deviation).astype(jnp.float32)

    return apart(features(images_BHW3), features(others_BHW3)).sum(axis=-1).mean()


def apart(one: jax.Array, other: jax.Array) -> jax.Array:
    """Returns squared differences of features [..., C] after normalisation to length 1."""
    return jnp.square(unit(one) - unit(other))


def unit(features: jax.Array) -> jax.Array:
    # The added constant keeps the gradient of the root finite.
    return features * jax.lax.rsqrt(jnp.square(features).sum(axis=-1, keepdims=True) + 1e-10)
