"""The mesh, and how parameters and batches lie on it. What each named axis is split over: `unimp_jax.model.axes`."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unimp_jax.model.axes import mesh_axes, partition_spec
from unimp_jax.model.unimp import ModelConfig, Part, UniMP, part_of

ROWS = ("data", "fsdp")
"""The mesh axes that the rows of a batch are split over."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices each axis has; one may be -1, for all that are left."""

    data: int = 1
    """Each holds all parameters and works on its own rows."""
    fsdp: int = 1
    """Each holds a part of every parameter and works on its own rows."""
    tensor: int = 1
    """Each holds some of the heads, MLP channels and vocabulary, and works on the same rows."""

    def __post_init__(self) -> None:
        sizes = dataclasses.astuple(self)
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ValueError(f"mesh: sizes must be at least 1, and one at most -1 (all that are left), not {self}")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all `devices` (by default, all there are) with axes data, fsdp and tensor.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.asdict(config)
    known = math.prod(size for size in sizes.values() if size != -1)
    sizes = {name: len(devices) // known if size == -1 else size for name, size in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        asked = " x ".join(f"{name}={size}" for name, size in dataclasses.asdict(config).items())
        raise ValueError(
            f"mesh: {asked} does not make {len(devices)} devices; one size may be -1, for all that are left"
        )
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of every array of a `Batch`: rows over data and fsdp, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def check_rows(rows: int, mesh: Mesh, accumulate: int = 1) -> None:
    """
    Raises:
      ValueError: each device would not get the same number of rows in each of `accumulate` parts of a batch.
    """
    shards = math.prod(mesh.shape[axis] for axis in ROWS)
    if rows % (shards * accumulate):
        raise ValueError(
            f"{rows} rows a batch are not a multiple of {shards * accumulate}: "
            f"data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']} x accumulate={accumulate}"
        )


def param_shardings(state: nnx.State, mesh: Mesh) -> nnx.State:
    """The sharding of each parameter: a state of `NamedSharding`s, as `jax.jit` takes it for `out_shardings`.

    Args:
      state: parameters, real or abstract, with their axis names.
      mesh: as of `make_mesh`.

    Raises:
      ValueError: an axis of a parameter is not a multiple of the mesh axis that would split it.
    """

    def sharding(path: tuple[Any, ...], variable: nnx.Variable[Any]) -> nnx.Variable[Any]:
        names = variable.get_metadata("axis_names")
        for name, size in zip(names, variable.shape, strict=True):
            for axis in mesh_axes(name):
                if size % mesh.shape[axis]:
                    raise ValueError(
                        f"{'/'.join(map(str, path))}: its axis {name} of {size} cannot be split over "
                        f"{axis}={mesh.shape[axis]}; choose a {axis} that divides {size}"
                    )
        return variable.replace(NamedSharding(mesh, partition_spec(names)))

    return nnx.map_state(sharding, state)


def init_model(
    config: ModelConfig,
    mesh: Mesh,
    seed: int,
    *,
    blank: Collection[Part] = (),
    dtypes: Mapping[Part, str] = types.MappingProxyType({}),
) -> UniMP:
    """A new model, its parameters drawn straight into their shardings; the same values whatever the mesh.

    Args:
      config: its geometry.
      mesh: as of `make_mesh`.
      seed: of what is drawn.
      blank: parts that are all zeros, as something else will be written over them: drawing takes memory.
      dtypes: what parts are kept in, where it is not `config.param_dtype`.

    Raises:
      ValueError: as of `param_shardings`.
    """

    def make() -> UniMP:
        return UniMP(config, rngs=nnx.Rngs(seed))

    def value(path: tuple[Any, ...], variable: nnx.Variable[Any]) -> nnx.Variable[Any]:
        part = part_of(path)
        drawn = jnp.zeros_like(variable[...]) if part in blank else variable[...]
        return variable.replace(drawn.astype(dtypes.get(part, config.param_dtype)))

    graph, shapes = nnx.split(nnx.eval_shape(make))
    shardings = param_shardings(shapes, mesh)
    draw = jax.jit(lambda: nnx.map_state(value, nnx.state(make())), out_shardings=shardings)
    return nnx.merge(graph, draw())
