"""TPU-specific implementations: the same results in an order that XLA for TPUs runs faster.

Kernels are in `row_kernel` and `kernels`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from unimp_jax.model.axes import platform


def gelu(x: jax.Array) -> jax.Array:
    """Computes exact GELU; on TPUs with erf instead of erfc, which XLA computes in separate passes. The cancellation in
    1 + erf costs 1e-7 of x."""
    if platform() != "tpu":
        return jax.nn.gelu(x, approximate=False)
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def mean_and_variance(
    x: jax.Array, kept: Callable[[jax.Array], jax.Array] = lambda x: x
) -> tuple[jax.Array, jax.Array]:
    """Returns float32 mean and variance over the last axis, kept with size 1; results pass through `kept`. On TPUs,
    16-bit inputs take one pass, E[x^2] - E[x]^2. The cancellation error, 2^-23 of the squared mean, is below the change
    of the variance by the rounding of the inputs, 2^-18 or more."""
    wide = x.astype(jnp.float32)
    mean = kept(wide.mean(-1, keepdims=True))
    if platform() == "tpu" and x.dtype.itemsize == 2:
        return mean, jnp.maximum(kept(jnp.square(wide).mean(-1, keepdims=True)) - jnp.square(mean), 0)
    return mean, kept(jnp.square(wide - mean).mean(-1, keepdims=True))
