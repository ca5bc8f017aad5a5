"""The mesh, and how parameters and batches lie on it. What each named axis is split over: `unimp_jax.model.axes`."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unimp_jax.model.axes import mesh_axes, partition_spec
from unimp_jax.model.unimp import ModelConfig, Part, UniMP, part_of

ROWS = mesh_axes("batch")
"""The mesh axes that the rows of a batch are split over."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices each axis has; one may be -1, for all that are left."""

    slice: int = 1
    """As `data`, but across networks: slices of TPUs, nodes of GPUs. Only gradients cross them."""
    data: int = 1
    """Each holds all parameters and works on its own rows."""
    fsdp: int = 1
    """Each holds a part of every parameter and works on its own rows."""
    context: int = 1
    """Each works on its own part of the tokens of the same rows, and gathers the keys and values of the others."""
    tensor: int = 1
    """Each holds some of the heads, MLP channels and vocabulary, and works on the same rows."""

    def __post_init__(self) -> None:
        sizes = dataclasses.astuple(self)
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ValueError(f"mesh: sizes must be at least 1, and one at most -1 (all that are left), not {self}")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all `devices` (by default, all there are) with the axes of `MeshConfig`, neighbours where much is sent.

    With several slices, what is not `slice` lies within one: of TPUs, as they are built; otherwise, the devices of as
    many processes as make a slice.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or the devices make another number of slices.
    """
    devices = jax.devices() if devices is None else devices
    built = {getattr(device, "slice_index", 0) for device in devices}
    sizes = mesh_sizes(config, len(devices), len(built))
    types = (AxisType.Auto,) * len(sizes)
    if len(built) > 1:
        inside = (sizes["slice"] // len(built), *list(sizes.values())[1:])
        across = (len(built), *[1] * len(inside[1:]))
        return Mesh(mesh_utils.create_hybrid_device_mesh(inside, across, devices), tuple(sizes), axis_types=types)
    if sizes["slice"] > 1:  # as they are numbered, process by process
        return Mesh(np.array(devices).reshape(tuple(sizes.values())), tuple(sizes), axis_types=types)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types, devices=devices)


def mesh_sizes(config: MeshConfig, devices: int, slices: int = 1) -> dict[str, int]:
    """How many of so many devices, in so many slices as they are built, each axis has.

    Raises:
      ValueError: as of `make_mesh`.
    """
    sizes = dataclasses.asdict(config)
    known = math.prod(size for size in sizes.values() if size != -1)
    sizes = {name: devices // known if size == -1 else size for name, size in sizes.items()}
    if math.prod(sizes.values()) != devices:
        asked = " x ".join(f"{name}={size}" for name, size in dataclasses.asdict(config).items() if size != 1)
        raise ValueError(
            f"mesh: {asked or 'data=1'} does not make {devices} devices; one size may be -1, for all that are left"
        )
    if sizes["slice"] % slices:
        raise ValueError(f"mesh: slice={sizes['slice']} is not a multiple of the {slices} slices there are")
    return sizes


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of every array of a `Batch`: rows over data and fsdp, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def row_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): of every global batch, cut into `count` equal parts, this process loads the part `index`.

    Processes whose devices work on the same rows (as where `tensor` or `context` spans them) load the same part.

    Raises:
      ValueError: this process's devices do not work on neighbouring rows.
    """
    devices_RX = mesh.devices.reshape(math.prod(mesh.shape[axis] for axis in ROWS), -1)  # ROWS are the first axes
    mine_RX = np.vectorize(lambda device: device.process_index == jax.process_index(), otypes=[bool])(devices_RX)
    own = np.flatnonzero(mine_RX.any(axis=1))
    whole = len(own) and own[-1] - own[0] + 1 == len(own) and not own[0] % len(own) and not len(devices_RX) % len(own)
    if not whole:
        raise ValueError(
            f"mesh: process {jax.process_index()} has devices for rows {own.tolist()} of {len(devices_RX)}, which are "
            "no equal part of neighbours; choose sizes that divide the devices of a process, or are a multiple of them"
        )
    return int(own[0]) // len(own), len(devices_RX) // len(own)


def check_rows(rows: int, mesh: Mesh, accumulate: int = 1) -> None:
    """
    Raises:
      ValueError: each device would not get the same number of rows in each of `accumulate` parts of a batch.
    """
    shards = math.prod(mesh.shape[axis] for axis in ROWS)
    if rows % (shards * accumulate):
        product = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in ROWS)
        raise ValueError(
            f"{rows} rows a batch are not a multiple of {shards * accumulate}: {product} x accumulate={accumulate}"
        )


def check_tokens(tokens: int, mesh: Mesh) -> None:
    """
    Raises:
      ValueError: each device would not get the same number of tokens of a row.
    """
    if tokens % mesh.shape["context"]:
        raise ValueError(
            f"{tokens} tokens a row are not a multiple of context={mesh.shape['context']}; "
            f"make budget.tokens {tokens + -tokens % mesh.shape['context']}"
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


def abstract_model(
    config: ModelConfig, mesh: Mesh, dtypes: Mapping[Part, str] = types.MappingProxyType({})
) -> tuple[nnx.GraphDef[UniMP], nnx.State]:
    """The structure of a model, and shapes, types and shardings of its parameters; arguments as of `init_model`."""

    def shaped(path: tuple[Any, ...], variable: nnx.Variable[Any], place: NamedSharding) -> jax.ShapeDtypeStruct:
        dtype = dtypes.get(part_of(path), config.param_dtype)
        return jax.ShapeDtypeStruct(variable.shape, dtype, sharding=place)

    graph, state = nnx.split(nnx.eval_shape(lambda: UniMP(config, rngs=nnx.Rngs(0))))
    places = dict(nnx.to_flat_state(param_shardings(state, mesh)))
    return graph, nnx.map_state(lambda path, x: x.replace(shaped(path, x, places[path].get_value())), state)


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

    graph, shapes = abstract_model(config, mesh, dtypes)
    shardings = jax.tree.map(lambda x: x.sharding, shapes)
    draw = jax.jit(lambda: nnx.map_state(value, nnx.state(make())), out_shardings=shardings)
    return nnx.merge(graph, draw())
