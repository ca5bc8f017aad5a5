"""Writes imported values into parameters on a mesh, in place and one array at a time."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from unimp_jax.interop.layout import by_name
from unimp_jax.interop.matching import Values


def load_values(states: tuple[nnx.State, ...], values: Iterable[Values]) -> tuple[nnx.State, ...]:
    """Writes values into the parameters of several states; buffers are donated, so memory grows by one array.

    Values whose parameter is in none of the states are ignored.
    """
    placed = by_name(*states)
    for name, index, array in values:
        if name in placed:
            written = _write(placed[name][...], index, array)
            placed[name] = placed[name].replace(written.block_until_ready())  # otherwise pending arrays accumulate
    return tuple(nnx.map_state(lambda path, _: placed["/".join(map(str, path))], state) for state in states)


def _write(parameter: jax.Array, index: tuple[int, ...], array: np.ndarray) -> jax.Array:
    start = np.zeros(parameter.ndim, np.int32)
    start[: len(index)] = index
    return _writer(parameter.sharding)(parameter, _put(array, parameter.sharding, parameter.ndim - array.ndim), start)


@functools.cache
def _writer(sharding: jax.sharding.Sharding) -> Callable[..., jax.Array]:
    def write(parameter: jax.Array, array: jax.Array, start: jax.Array) -> jax.Array:
        block = array.astype(parameter.dtype).reshape((1,) * (parameter.ndim - array.ndim) + array.shape)
        return jax.lax.dynamic_update_slice(parameter, block, tuple(start))

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)


def _put(array: np.ndarray, sharding: Any, leading: int) -> jax.Array:
    """Puts an array on the mesh with the parameter's sharding, replicated if the mesh cannot split it."""
    if not isinstance(sharding, NamedSharding):
        return jax.device_put(array, sharding)
    spec = PartitionSpec(*sharding.spec[leading:])
    own = NamedSharding(sharding.mesh, spec)
    try:
        own.shard_shape(array.shape)
    except ValueError:
        own = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.make_array_from_callback(array.shape, own, lambda index: array[index])
