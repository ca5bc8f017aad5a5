"""The device mesh, and the sharding of parameters and batches; `unimp_jax.model.axes` maps named axes to mesh axes."""

import dataclasses
import functools
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

from unimp_jax.compiling import draw
from unimp_jax.model.axes import mesh_axes
from unimp_jax.model.quantization import Quantized
from unimp_jax.model.unimp import ModelConfig, Part, UniMP, part_of

ROWS = mesh_axes("batch")
"""The mesh axes over which the rows of a batch are split."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Size of each mesh axis; one may be -1, for all remaining devices."""

    slice: int = 1
    """Like `data`, but across networks, which only gradients cross: a multiple of the TPU slices, or GPU nodes."""
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
            raise ValueError(
                f"mesh: sizes must be at least 1, and at most one may be -1 (all remaining devices), not {self}"
            )

    @property
    def row_shards(self) -> int:
        """Number of parts into which the rows of a batch are split; below 0 if it depends on the devices."""
        return self.slice * self.data * self.fsdp


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh of `devices` (by default, all) with the axes of `MeshConfig`, neighbours along busy axes.

    TPUs are arranged by their torus; with several slices, all axes except `slice` stay within one. Other devices are
    ordered by node and process: the last axes stay within a node as far as possible, and any axis may cross nodes.

    Raises:
      ValueError: The sizes do not multiply to the number of devices, they do not fit the number of TPU slices, or JAX
        cannot arrange the devices in this shape.
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = tpu_slices(devices)
    sizes = mesh_sizes(config, len(devices), slices)
    axis_types = (AxisType.Auto,) * len(sizes)
    return Mesh(_laid_out(tuple(sizes.values()), devices, slices), tuple(sizes), axis_types=axis_types)


def tpu_slices(devices: Sequence[jax.Device]) -> int:
    """Returns the number of TPU slices, which only a slow network connects; other devices count as one slice. JAX
    numbers GPU nodes as slices, too, but communication between them differs in speed only."""
    on_tpu = devices[0].platform == "tpu"
    return len({getattr(device, "slice_index", 0) for device in devices}) if on_tpu else 1


def _laid_out(shape: tuple[int, ...], devices: list[jax.Device], slices: int) -> np.ndarray:
    """Returns the devices as an array of this shape, whose first axis is that of slices."""
    if devices[0].platform != "tpu":
        ordered = sorted(devices, key=lambda device: (getattr(device, "slice_index", 0), device.process_index))
        return np.array(ordered).reshape(shape)
    try:
        if slices == 1:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        inside, across = (shape[0] // slices, *shape[1:]), (slices, *[1] * (len(shape) - 1))
        return mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError, TypeError, ValueError) as error:  # mesh_utils raises all of them
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(
            f"mesh: JAX cannot arrange {len(devices)} TPUs as {' x '.join(map(str, shape))} ({reason}); choose "
            "sizes that are products of the side lengths of a slice, and slices of one size"
        ) from error


def mesh_sizes(config: MeshConfig, devices: int, slices: int = 1) -> dict[str, int]:
    """Returns the size of each mesh axis for a number of devices in a number of TPU slices.

    Raises:
      ValueError: The sizes do not multiply to the number of devices, or the axis `slice` is not a multiple of the
        slices.
    """
    sizes = dataclasses.asdict(config)
    known = math.prod(size for size in sizes.values() if size != -1)
    sizes = {name: devices // known if size == -1 else size for name, size in sizes.items()}
    if math.prod(sizes.values()) != devices:
        asked = " x ".join(f"{name}={size}" for name, size in dataclasses.asdict(config).items() if size != 1)
        raise ValueError(
            f"mesh: {asked or 'data=1'} does not make {devices} devices; one size may be -1, for all remaining devices"
        )
    if sizes["slice"] % slices:
        raise ValueError(
            f"mesh: slice={sizes['slice']} is not a multiple of the {slices} slices, between which only gradients "
            f"should be sent; set mesh.slice {slices}, and the other sizes so that their product is the "
            f"{devices // slices} devices of a slice"
        )
    return sizes


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of every array of a `Batch`: split by rows, otherwise whole."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def row_shards(mesh: Mesh, process: int | None = None) -> tuple[tuple[int, ...], int]:
    """Returns (shards, count): the row shards of every global batch that a process loads, and their total number.

    A process loads the shards that its devices work on, which need not be contiguous: a TPU host is a block of the
    torus, and the mesh winds through it. A shard whose devices belong to several processes (as when `tensor` or
    `context` crosses them) is loaded by each of them.

    Returns:
      The numbers of the shards in ascending order, and the total number of equal shards.
    """
    process = jax.process_index() if process is None else process
    count = math.prod(mesh.shape[axis] for axis in ROWS)
    devices_RX = mesh.devices.reshape(count, -1)  # ROWS are the first axes
    own = [row for row, devices in enumerate(devices_RX) if any(d.process_index == process for d in devices)]
    return tuple(own), count


def local_rows(index: slice, rows: int, shards: tuple[int, ...], count: int) -> slice:
    """Returns where a batch's rows `index` (one shard) are in the concatenated `shards` of a process."""
    start, stop, _ = index.indices(rows)
    first = shards.index(start * count // rows) * (stop - start)
    return slice(first, first + stop - start)


def put_rows(mesh: Mesh, loaded: Any) -> Any:
    """Returns global arrays of a batch, sharded by rows, from the rows that each process has loaded.

    `jax.make_array_from_process_local_data` requires that all processes have equally many shards, or the same ones;
    this works for every mesh.

    Args:
      loaded: Arrays in any structure, each with the rows of the process's `row_shards`, in ascending order.
    """
    sharding = batch_sharding(mesh)
    if sharding.is_fully_addressable:  # all at once costs the host a fraction of one after another
        return jax.device_put(loaded, sharding)
    shards, count = row_shards(mesh)

    def put(array: np.ndarray) -> jax.Array:
        rows = len(array) // len(shards) * count
        return jax.make_array_from_callback(
            (rows, *array.shape[1:]), sharding, lambda index: array[local_rows(index[0], rows, shards, count)]
        )

    return jax.tree.map(put, loaded)


def put_everywhere(mesh: Mesh, loaded: Any) -> Any:
    """Replicates arrays, in any structure, that every process has loaded, on every device.

    Unlike `jax.device_put`, it does not compare the values across processes.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    if everywhere.is_fully_addressable:
        return jax.device_put(loaded, everywhere)

    def put(array: Any) -> jax.Array:
        if isinstance(array, jax.Array) and not array.is_fully_addressable:  # already global
            return array
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, everywhere, lambda index: whole[index])

    return jax.tree.map(put, loaded)


def check_rows(rows: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Checks that rows can be split evenly.

    Raises:
      ValueError: Each device would not get the same number of rows in each of `accumulate` parts of a batch.
    """
    shards = math.prod(mesh.shape[axis] for axis in ROWS)
    if rows % (shards * accumulate):
        product = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in ROWS)
        raise ValueError(
            f"a batch of {rows} rows is not a multiple of {shards * accumulate}: {product} x accumulate={accumulate}"
        )


def check_tokens(tokens: int, mesh: Mesh) -> None:
    """Checks that tokens can be split evenly.

    Raises:
      ValueError: Each device would not get the same number of tokens of a row.
    """
    if tokens % mesh.shape["context"]:
        raise ValueError(
            f"a row of {tokens} tokens is not a multiple of context={mesh.shape['context']}; set row_shape.tokens "
            f"{tokens + -tokens % mesh.shape['context']}"
        )


def param_shardings(state: nnx.State, mesh: Mesh) -> nnx.State:
    """Returns the sharding of each parameter: a state of `NamedSharding`s, for `out_shardings` of `jax.jit`.

    Args:
      state: Parameters, concrete or abstract, with their axis names.

    Raises:
      ValueError: An axis of a parameter is not a multiple of the mesh axis that would split it.
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
        return variable.replace(NamedSharding(mesh, PartitionSpec(*(mesh_axes(name) or None for name in names))))

    return nnx.map_state(sharding, state)


@functools.lru_cache(maxsize=8)
def structure(config: ModelConfig) -> tuple[nnx.GraphDef[UniMP], nnx.State]:
    """Returns the graph of a model and the shapes of its parameters, which callers share and must not change. Tracing a
    model takes a second, and a command needs its structure several times."""
    return nnx.split(nnx.eval_shape(lambda: UniMP(config, rngs=nnx.Rngs(0))))


def abstract_model(
    config: ModelConfig, mesh: Mesh, dtypes: Mapping[Part, str] = types.MappingProxyType({})
) -> tuple[nnx.GraphDef[UniMP], nnx.State]:
    """Returns the graph of a model and its parameters' shapes, dtypes and shardings; for arguments see `init_model`."""

    def shaped(path: tuple[Any, ...], variable: nnx.Variable[Any], place: NamedSharding) -> jax.ShapeDtypeStruct:
        quantized = isinstance(variable, Quantized)
        dtype = variable.dtype if quantized else dtypes.get(part_of(path), config.param_dtype)
        return jax.ShapeDtypeStruct(variable.shape, dtype, sharding=place)

    graph, state = structure(config)
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
    """Returns a new model whose parameters are drawn directly into their shardings; values do not depend on the mesh.

    Args:
      blank: Parts that are set to zero because they will be overwritten; drawing takes memory.
      dtypes: Dtypes of parts, where they differ from `config.param_dtype`.

    Raises:
      ValueError: See `param_shardings`.
    """

    def make() -> UniMP:
        return UniMP(config, rngs=nnx.Rngs(seed))

    def value(path: tuple[Any, ...], variable: nnx.Variable[Any]) -> nnx.Variable[Any]:
        part = part_of(path)
        if isinstance(variable, Quantized):
            return variable
        drawn = jnp.zeros_like(variable[...]) if part in blank else variable[...]
        return variable.replace(drawn.astype(dtypes.get(part, config.param_dtype)))

    graph, shapes = abstract_model(config, mesh, dtypes)
    shardings = jax.tree.map(lambda x: x.sharding, shapes)
    return nnx.merge(graph, draw(lambda: nnx.map_state(value, nnx.state(make())), shardings))
