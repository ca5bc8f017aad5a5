"""Inception v3 (arXiv:1512.00567) up to its pooled features, as used for the FID.

It differs from the published network in its pooling: means exclude padding, and the last block uses a maximum. Blocks
and units have torchvision's names, so that weights can be found by name.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

SIZE = 299
EPS = 1e-3


@dataclasses.dataclass(frozen=True)
class Unit:
    """A convolution; `padded` preserves height and width."""

    name: str
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


Pool = Literal["mean", "max", "halve"]
"""3 x 3 pooling: mean or maximum at every position, or maximum at every second one."""
Step = Unit | Pool | tuple[Unit, Unit]
"""A tuple of two units share their input, and their outputs are concatenated."""
Branch = tuple[Step, ...]


def halving(name: str, outputs: int) -> Unit:
    return Unit(name, outputs, (3, 3), stride=2, padded=False)


def block_a(pooled: int) -> tuple[Branch, ...]:
    return (
        (Unit("branch1x1", 64),),
        (Unit("branch5x5_1", 48), Unit("branch5x5_2", 64, (5, 5))),
        (Unit("branch3x3dbl_1", 64), Unit("branch3x3dbl_2", 96, (3, 3)), Unit("branch3x3dbl_3", 96, (3, 3))),
        ("mean", Unit("branch_pool", pooled)),
    )


def block_c(inner: int) -> tuple[Branch, ...]:
    return (
        (Unit("branch1x1", 192),),
        (Unit("branch7x7_1", inner), Unit("branch7x7_2", inner, (1, 7)), Unit("branch7x7_3", 192, (7, 1))),
        (
            Unit("branch7x7dbl_1", inner),
            Unit("branch7x7dbl_2", inner, (7, 1)),
            Unit("branch7x7dbl_3", inner, (1, 7)),
            Unit("branch7x7dbl_4", inner, (7, 1)),
            Unit("branch7x7dbl_5", 192, (1, 7)),
        ),
        ("mean", Unit("branch_pool", 192)),
    )


def block_e(pool: Pool) -> tuple[Branch, ...]:
    return (
        (Unit("branch1x1", 320),),
        (Unit("branch3x3_1", 384), (Unit("branch3x3_2a", 384, (1, 3)), Unit("branch3x3_2b", 384, (3, 1)))),
        (
            Unit("branch3x3dbl_1", 448),
            Unit("branch3x3dbl_2", 384, (3, 3)),
            (Unit("branch3x3dbl_3a", 384, (1, 3)), Unit("branch3x3dbl_3b", 384, (3, 1))),
        ),
        (pool, Unit("branch_pool", 192)),
    )


STEM: Branch = (
    halving("Conv2d_1a_3x3", 32),
    Unit("Conv2d_2a_3x3", 32, (3, 3), padded=False),
    Unit("Conv2d_2b_3x3", 64, (3, 3)),
    "halve",
    Unit("Conv2d_3b_1x1", 80),
    Unit("Conv2d_4a_3x3", 192, (3, 3), padded=False),
    "halve",
)
BLOCKS: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": block_a(32),
    "Mixed_5c": block_a(64),
    "Mixed_5d": block_a(64),
    "Mixed_6a": (
        (halving("branch3x3", 384),),
        (Unit("branch3x3dbl_1", 64), Unit("branch3x3dbl_2", 96, (3, 3)), halving("branch3x3dbl_3", 96)),
        ("halve",),
    ),
    "Mixed_6b": block_c(128),
    "Mixed_6c": block_c(160),
    "Mixed_6d": block_c(160),
    "Mixed_6e": block_c(192),
    "Mixed_7a": (
        (Unit("branch3x3_1", 192), halving("branch3x3_2", 320)),
        (
            Unit("branch7x7x3_1", 192),
            Unit("branch7x7x3_2", 192, (1, 7)),
            Unit("branch7x7x3_3", 192, (7, 1)),
            halving("branch7x7x3_4", 192),
        ),
        ("halve",),
    ),
    "Mixed_7b": block_e("mean"),
    "Mixed_7c": block_e("max"),
}


def units() -> dict[str, tuple[int, Unit]]:
    """Returns name -> (input width, unit)."""
    found: dict[str, tuple[int, Unit]] = {}

    def follow(prefix: str, branch: Branch, width: int) -> int:
        """Adds a branch's units; returns its output width."""
        for step in branch:
            together = () if isinstance(step, str) else step if isinstance(step, tuple) else (step,)
            found.update({prefix + unit.name: (width, unit) for unit in together})
            width = sum(unit.outputs for unit in together) or width
        return width

    width = follow("", STEM, 3)
    for name, branches in BLOCKS.items():
        width = sum(follow(f"{name}.", branch, width) for branch in branches)
    return found


class Convolution(nnx.Module):
    """A convolution followed by normalisation with fixed statistics and ReLU."""

    def __init__(self, inputs: int, unit: Unit, rngs: nnx.Rngs):
        self.stride, self.padding = unit.stride, "SAME" if unit.padded else "VALID"
        shape = (*unit.kernel, inputs, unit.outputs)
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), shape))
        self.scale, self.bias = nnx.Param(jnp.ones(unit.outputs)), nnx.Param(jnp.zeros(unit.outputs))
        self.mean, self.variance = nnx.Param(jnp.zeros(unit.outputs)), nnx.Param(jnp.ones(unit.outputs))

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        strides, layout = (self.stride, self.stride), ("NHWC", "HWIO", "NHWC")
        x_BHWC = jax.lax.conv_general_dilated(x_BHWC, self.kernel[...], strides, self.padding, dimension_numbers=layout)
        scale = self.scale[...] * jax.lax.rsqrt(self.variance[...] + EPS)
        return jax.nn.relu((x_BHWC - self.mean[...]) * scale + self.bias[...])


class Inception(nnx.Module):
    """Maps images to 2,048 features."""

    def __init__(self, rngs: nnx.Rngs):
        self.units = nnx.Dict({name: Convolution(*unit, rngs) for name, unit in units().items()})

    def __call__(self, images_BHW3: jax.Array) -> jax.Array:
        """Returns float32 [B, 2048] for uint8 of any size, resized to 299 x 299 as for the FID (bilinear)."""
        shape = (len(images_BHW3), SIZE, SIZE, 3)
        pixels = jax.image.resize(images_BHW3.astype(jnp.float32) / 255, shape, "bilinear", antialias=False)
        x_BHWC = self._run("", STEM, 2 * pixels - 1)
        for name, branches in BLOCKS.items():
            x_BHWC = jnp.concatenate([self._run(f"{name}.", branch, x_BHWC) for branch in branches], axis=-1)
        return x_BHWC.mean(axis=(1, 2))

    def _run(self, prefix: str, branch: Branch, x_BHWC: jax.Array) -> jax.Array:
        for step in branch:
            if isinstance(step, str):
                x_BHWC = pooled(x_BHWC, step)
            elif isinstance(step, tuple):
                x_BHWC = jnp.concatenate([self.units[prefix + unit.name](x_BHWC) for unit in step], axis=-1)
            else:
                x_BHWC = self.units[prefix + step.name](x_BHWC)
        return x_BHWC


def pooled(x_BHWC: jax.Array, pool: Pool) -> jax.Array:
    if pool == "mean":
        return nnx.avg_pool(x_BHWC, (3, 3), padding="SAME", count_include_pad=False)
    stride, padding = ((2, 2), "VALID") if pool == "halve" else ((1, 1), "SAME")
    return nnx.max_pool(x_BHWC, (3, 3), strides=stride, padding=padding)
