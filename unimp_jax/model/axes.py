"""Names for the axes of parameters and activations, and the mesh axis that carries each."""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec

RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),  # rows; an activation's width is never split, so that only rows and heads are
    "embed": "fsdp",
    "vision_embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "layers": None,  # stacked by scan
    "new_vocab": None,
    "head_dim": None,
    "norm": None,
    "gate": None,
    "latents": None,
    "patches": None,
    "patch_rows": None,
    "patch_columns": None,
    "colours": None,
}
"""Logical axis -> mesh axis (or axes); None is kept whole."""


def mesh_axes(name: str | None) -> tuple[str, ...]:
    """The mesh axes over which a logical axis is split."""
    carried = RULES[name] if name else None
    return (carried,) if isinstance(carried, str) else carried or ()


def partition_spec(names: tuple[str | None, ...]) -> PartitionSpec:
    """Logical axis names of an array -> how it lies on the mesh."""
    return PartitionSpec(*(mesh_axes(name) or None for name in names))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Says how an activation lies on the mesh of the context (`jax.set_mesh`); without a mesh it does nothing.

    An axis whose size the mesh does not divide is left to the compiler.

    Args:
      x: any array.
      names: a logical name for each axis, or None.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    parts = []
    for size, name in zip(x.shape, names, strict=True):
        axes = tuple(axis for axis in mesh_axes(name) if axis in mesh.shape)
        shards = 1
        for axis in axes:
            shards *= mesh.shape[axis]
        parts.append(axes if axes and size % shards == 0 else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*parts))
