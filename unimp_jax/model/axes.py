"""Names of the axes of parameters and activations, and the mesh axes over which each is sharded."""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("slice", "data", "fsdp"),  # rows; activations are split by rows, tokens and heads, never by width
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
    "seen": None,  # channels of an image that one matrix maps to a token
    "patches": None,
    "patch_rows": None,
    "patch_columns": None,
    "colours": None,
}
"""Logical axis -> mesh axis (or axes); None: not sharded."""


Name: TypeAlias = Any
"""An activation's axis: a logical name, None (not sharded) or `PartitionSpec.UNCONSTRAINED` (XLA chooses)."""

GATHERED = ("embed", "vision_embed")
"""Parameter axes that are sharded in storage and gathered for use."""


def mesh_axes(name: str | None) -> tuple[str, ...]:
    """Returns the mesh axes over which a logical axis is sharded."""
    carried = RULES[name] if name else None
    return (carried,) if isinstance(carried, str) else carried or ()


def splits(name: str) -> int:
    """Returns the number of shards of a logical axis on the mesh of the context; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape.get(axis, 1) for axis in mesh_axes(name))


def platform() -> Literal["tpu", "gpu", "cpu"]:
    """Returns the platform of the mesh of the context, or else of JAX's default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = device.device_kind if device is not None else jax.devices()[0].device_kind
    return "tpu" if kind.startswith("TPU") else "gpu" if kind.startswith("NVIDIA") else "cpu"


def gathered(parameter: nnx.Variable[Any], dtype: str, contracted: int | None = None) -> jax.Array:
    """Returns a parameter ready for a product: converted, and gathered from the devices that hold its shards. Otherwise
    XLA for TPUs would pass the shards around while multiplying by them one after another, and write and read the whole
    product each time.

    Args:
      contracted: Reshapes to a matrix whose first axis is the first `contracted` axes merged, and whose second is the
        rest; only the first axis of each group may be sharded. None: the axes are kept.
    """
    value = parameter[...]
    narrow = value.dtype.itemsize < jnp.dtype(dtype).itemsize  # converting after the gather sends fewer bytes
    value = value if narrow else value.astype(dtype)
    names = parameter.get_metadata("axis_names")[-value.ndim :]  # of one layer, if it is stacked
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
    """Sends each device only its own shard of a gradient. JAX's own rule would first replicate it everywhere like the
    parameter, which takes twice the bytes, and XLA for TPUs waits for them."""
    return (constrain(gradient, *names),)


_gather.defvjp(_gather_forward, _gather_backward)


def constrain(x: jax.Array, *names: Name) -> jax.Array:
    """Constrains an activation's sharding on the mesh of the context (`jax.set_mesh`), if there is one."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, fitting_spec(x.shape, names))


def fitting_spec(shape: tuple[int, ...], names: Sequence[Name]) -> PartitionSpec:
    """Returns the partition spec of an array on the mesh of the context. Each axis is split over the longest prefix of
    its mesh axes that divides its size."""
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
