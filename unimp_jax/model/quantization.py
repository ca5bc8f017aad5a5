"""Matrices that do not train, in eight bits an entry and a scale a column, from absolute maxima as qwix's."""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from unimp_jax.model.layers import Linear, parameter

Quantization = Literal["none", "int8", "fp8"]

DTYPES = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}


class Quantized(nnx.Variable):
    """Entries of quantised matrices, or their scales: they stay of the type that they are, and no part trains them."""


def quantize(kernel: jax.Array, axes: tuple[int, ...], dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """A matrix as (entries of `dtype`, float32 scales), whose product, broadcast along `axes`, is near it.

    Args:
      kernel: float [..., I, ..., O, ...], one matrix or a stack of them.
      axes: those that a product sums over; scales do not have them.
    """
    whole = jnp.issubdtype(dtype, jnp.integer)
    bound = jnp.iinfo(dtype).max if whole else float(jnp.finfo(dtype).max)
    kernel = kernel.astype(jnp.float32)
    # Integers share what lies between -127.5 and 127.5; columns of zeros have a scale that is not 0.
    scales = jnp.maximum(jnp.abs(kernel).max(axes), 1e-30) / (bound + 0.5 * whole)
    entries = kernel / jnp.expand_dims(scales, axes)
    return jnp.clip(jnp.round(entries) if whole else entries, -bound, bound).astype(dtype), scales


def dequantize(entries: jax.Array, scales: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """float32, of the shape of `entries`."""
    return entries.astype(jnp.float32) * jnp.expand_dims(scales, axes)


def quantize_layers(module: nnx.Module, quantization: Quantization) -> None:
    """Quantises the matrices of all linear layers of a module, one after the other, each lying as it lay."""
    if quantization == "none":
        return
    for layer in [layer for _, layer in nnx.iter_modules(module) if isinstance(layer, Linear)]:
        names, axes = layer.kernel.get_metadata("axis_names"), summed_axes(layer)
        entries, scales = jax.jit(functools.partial(quantize, axes=axes, dtype=DTYPES[quantization]))(layer.kernel[...])
        layer.kernel = Quantized(entries, axis_names=names)
        layer.kernel_scale = Quantized(scales, axis_names=tuple(n for i, n in enumerate(names) if i not in axes))


def dequantize_layers(module: nnx.Module) -> None:
    """Puts matrices of the type that is computed in, which lie as they lay, in the places of quantised ones."""
    layers = [layer for _, layer in nnx.iter_modules(module) if isinstance(layer, Linear)]
    for layer in [layer for layer in layers if layer.kernel_scale is not None]:
        kernel, axes = layer.kernel[...], summed_axes(layer)

        def dense(entries: jax.Array, scales: jax.Array) -> jax.Array:
            return dequantize(entries, scales, axes).astype(layer.dtype)  # noqa: B023

        value = jax.jit(dense, out_shardings=kernel.sharding)(kernel, layer.kernel_scale[...])
        layer.kernel = parameter(value, layer.kernel.get_metadata("axis_names"))
        del layer.kernel_scale


def summed_axes(layer: Linear) -> tuple[int, ...]:
    """The axes of a layer's matrix, stacked or not, that a product sums over."""
    layers = layer.kernel.get_metadata("axis_names").count("layers")
    return tuple(range(layers, layers + layer.contracted))
