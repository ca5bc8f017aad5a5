"""Quantisation of frozen matrices to eight bits per entry and one scale per column, from absolute maxima as in qwix."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from unimp_jax.model.layers import Linear, parameter

Quantization = Literal["none", "int8", "fp8"]

DTYPES = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}


class Quantized(nnx.Variable):
    """Entries or scales of quantised matrices; they keep their dtype, and no part trains them."""


def quantize(kernel: jax.Array, axes: tuple[int, ...], dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Quantises a matrix, or a stack of them, to (entries of `dtype`, float32 scales without the contracted `axes`).
    The entries times the scales, which are broadcast along `axes`, approximate the matrix."""
    whole = jnp.issubdtype(dtype, jnp.integer)
    bound = jnp.iinfo(dtype).max if whole else float(jnp.finfo(dtype).max)
    kernel = kernel.astype(jnp.float32)
    # Integers divide the range -127.5 to 127.5 evenly; columns of zeros get a nonzero scale.
    scales = jnp.maximum(jnp.abs(kernel).max(axes), 1e-30) / (bound + 0.5 * whole)
    entries = kernel / jnp.expand_dims(scales, axes)
    return jnp.clip(jnp.round(entries) if whole else entries, -bound, bound).astype(dtype), scales


def dequantize(entries: jax.Array, scales: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns float32 values of the shape of `entries`."""
    return entries.astype(jnp.float32) * jnp.expand_dims(scales, axes)


def quantize_layers(module: nnx.Module, quantization: Quantization) -> None:
    """Quantises the matrices of all linear layers of a module, one at a time; each keeps its sharding."""
    if quantization == "none":
        return
    for layer in [layer for _, layer in nnx.iter_modules(module) if isinstance(layer, Linear)]:
        names, axes = layer.kernel.get_metadata("axis_names"), summed_axes(layer)
        entries, scales = jax.jit(functools.partial(quantize, axes=axes, dtype=DTYPES[quantization]))(layer.kernel[...])
        layer.kernel = Quantized(entries, axis_names=names)
        layer.kernel_scale = Quantized(scales, axis_names=tuple(n for i, n in enumerate(names) if i not in axes))


def dequantize_layers(module: nnx.Module) -> None:
    """Replaces quantised matrices by matrices in the compute dtype with the same sharding."""
    layers = [layer for _, layer in nnx.iter_modules(module) if isinstance(layer, Linear)]
    for layer in [layer for layer in layers if layer.kernel_scale is not None]:
        kernel, axes = layer.kernel[...], summed_axes(layer)

        def dense(entries: jax.Array, scales: jax.Array) -> jax.Array:
            return dequantize(entries, scales, axes).astype(layer.dtype)  # noqa: B023

        value = jax.jit(dense, out_shardings=kernel.sharding)(kernel, layer.kernel_scale[...])
        layer.kernel = parameter(value, layer.kernel.get_metadata("axis_names"))
        del layer.kernel_scale


def summed_axes(layer: Linear) -> tuple[int, ...]:
    """Returns the contracted axes of a layer's matrix, stacked or not."""
    layers = layer.kernel.get_metadata("axis_names").count("layers")
    return tuple(range(layers, layers + layer.contracted))
