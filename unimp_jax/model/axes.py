"""Names for the axes of parameters and activations, and the mesh axes that each is split over."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("slice", "data", "fsdp"),  # rows; of activations, rows, tokens and heads are split, never the width
    "sequence": "context",  # tokens of a row: each device's queries attend to the gathered keys of the whole row
    "images": ("slice", "data", "fsdp", "context"),
    "embed": "fsdp",
    "vision_embed": "fsdp",
    "vocab": "tensor",
    "new_vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "layers": None,  # stacked by scan
    "content": None,
    "head_dim": None,
    "norm": None,
    "gate": None,
    "latents": None,
    "rank": None,
    "seen": None,  # channels of an image, of which one matrix makes a token
    "patches": None,
    "patch_rows": None,
    "patch_columns": None,
    "colours": None,
}
"""Logical axis -> mesh axis (or axes); None is kept whole."""


Name: TypeAlias = Any
"""Of an activation's axis: a logical name, None to keep it whole, `PartitionSpec.UNCONSTRAINED` for XLA to choose."""

GATHERED = ("embed", "vision_embed")
"""Axes of parameters that are split where they are kept, and whole where they are used."""


def mesh_axes(name: str | None) -> tuple[str, ...]:
    """The mesh axes over which a logical axis is split."""
    carried = RULES[name] if name else None
    return (carried,) if isinstance(carried, str) else carried or ()


def partition_spec(names: tuple[str | None, ...]) -> PartitionSpec:
    """Logical axis names of an array -> how it lies on the mesh."""
    return PartitionSpec(*(mesh_axes(name) or None for name in names))


def splits(name: str) -> int:
    """Over how many devices of the mesh of the context a logical axis is split; without a mesh, 1."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape.get(axis, 1) for axis in mesh_axes(name))


def platform() -> Literal["tpu", "gpu", "cpu"]:
    """What the mesh of the context is made of, else what JAX computes on by default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = device.device_kind if device is not None else jax.devices()[0].device_kind
    return "tpu" if kind.startswith("TPU") else "gpu" if kind.startswith("NVIDIA") else "cpu"


def gathered(parameter: nnx.Variable[Any], dtype: str, contracted: int | None = None) -> jax.Array:
    """A parameter as a product takes it: converted, and gathered over the devices that keep parts of it.

    Left to itself, XLA for TPUs would rather send the parts around while it multiplies by them, one after another,
    and write and read the whole product each time.

    Args:
      contracted: makes a matrix of it: so many axes, from the first on, are one, and the others; of either only the
        first may be split over devices. None: it keeps its axes.
    """
    value = parameter[...]
    narrow = value.dtype.itemsize < jnp.dtype(dtype).itemsize  # fewer bytes are sent where it is converted afterwards
    value = value if narrow else value.astype(dtype)
    names = parameter.get_metadata("axis_names")[-value.ndim :]  # of one layer, where it is stacked
    if contracted is not None:
        value = value.reshape(math.prod(value.shape[:contracted]), -1)
        names = (names[0], names[contracted])
    if all(splits(name) == 1 for name in names if name in GATHERED):
        return value.astype(dtype)
    return _gather(names, value).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(names: tuple[str | None, ...], value: jax.Array) -> jax.Array:
    kept = constrain(value, *names)
    return constrain(kept, *[None if name in GATHERED else name for name in names])


def _gather_forward(names: tuple[str | None, ...], value: jax.Array) -> tuple[jax.Array, None]:
    return _gather(names, value), None


def _gather_backward(names: tuple[str | None, ...], _: None, gradient: jax.Array) -> tuple[jax.Array]:
    """Of a gradient each device is sent its own part alone. JAX's own rule would first have it whole everywhere, as
    the parameter was, which takes twice the bytes, and XLA for TPUs waits for them."""
    return (constrain(gradient, *names),)


_gather.defvjp(_gather_forward, _gather_backward)


def constrain(x: jax.Array, *names: Name) -> jax.Array:
    """Says how an activation lies on the mesh of the context (`jax.set_mesh`); without a mesh it does nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, fitting_spec(x.shape, names))


def fitting_spec(shape: tuple[int, ...], names: Sequence[Name]) -> PartitionSpec:
    """How an array lies on the mesh of the context: each axis is split over as many of its mesh axes, from the first
    on, as divide its size."""
    mesh = jax.sharding.get_abstract_mesh()
    parts: list[Any] = []
    for size, name in zip(shape, names, strict=True):
        if name is PartitionSpec.UNCONSTRAINED:
            parts.append(name)
            continue
        axes, shards = [], 1
        for axis in mesh_axes(name):
            if size % (shards * mesh.shape.get(axis, 1)):
                break
            axes.append(axis)
            shards *= mesh.shape.get(axis, 1)
        parts.append(tuple(axis for axis in axes if axis in mesh.shape) or None)
    return PartitionSpec(*parts)
