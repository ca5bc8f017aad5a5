"""Shortcuts for TPUs: what other files compute plainly, in another order that XLA for TPUs runs faster.

Kernels are in `row_kernel` and `kernels`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from unimp_jax.model.axes import platform


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU. On TPUs by erf in the place of erfc, which XLA computes in passes of its own: what is lost where
    1 + erf cancels is 1e-7 of x."""
    if platform() != "tpu":
        return jax.nn.gelu(x, approximate=False)
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def mean_and_variance(
    x: jax.Array, kept: Callable[[jax.Array], jax.Array] = lambda x: x
) -> tuple[jax.Array, jax.Array]:
    """Of the last axis, which stays as one of 1: float32; what is summed over it goes through `kept`.

    On TPUs of 16-bit numbers in one pass, E[x^2] - E[x]^2: what cancels is less than what their own rounding has
    already changed of the variance, 2^-23 of the squared mean against 2^-18 or more.
    """
    wide = x.astype(jnp.float32)
    mean = kept(wide.mean(-1, keepdims=True))
    if platform() == "tpu" and x.dtype.itemsize == 2:
        return mean, jnp.maximum(kept(jnp.square(wide).mean(-1, keepdims=True)) - jnp.square(mean), 0)
    return mean, kept(jnp.square(wide - mean).mean(-1, keepdims=True))
