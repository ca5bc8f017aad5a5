"""Imported values into parameters that lie on a mesh, one array at a time, in place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from unimp_jax.interop.start import Values


def place(states: tuple[nnx.State, ...], values: Iterable[Values]) -> tuple[nnx.State, ...]:
    """Writes values over the parameters of several states, whose buffers are donated: memory grows by one array.

    Values whose parameter is in none of the states are passed over.
    """
    flat = [dict(nnx.to_flat_state(state)) for state in states]
    where = {"/".join(map(str, path)): (number, path) for number, paths in enumerate(flat) for path in paths}
    for value in values:
        if value.name in where:
            number, path = where[value.name]
            variable = flat[number][path]
            written = _write(variable[...], value)
            flat[number][path] = variable.replace(written.block_until_ready())  # else arrays that wait would add up
    return tuple(nnx.from_flat_state(list(paths.items())) for paths in flat)


def _write(parameter: jax.Array, value: Values) -> jax.Array:
    leading = parameter.ndim - value.array.ndim
    start = np.array(value.start, np.int32)
    return _writer(parameter.sharding)(parameter, _put(value.array, parameter.sharding, leading), start)


@functools.cache
def _writer(sharding: jax.sharding.Sharding) -> Callable[..., jax.Array]:
    def write(parameter: jax.Array, array: jax.Array, start: jax.Array) -> jax.Array:
        block = array.astype(parameter.dtype).reshape((1,) * (parameter.ndim - array.ndim) + array.shape)
        return jax.lax.dynamic_update_slice(parameter, block, tuple(start))

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)


def _put(array: np.ndarray, sharding: Any, leading: int) -> jax.Array:
    """An array on the mesh as the parameter's own axes lie there; whole everywhere where the mesh cannot split it."""
    if not isinstance(sharding, NamedSharding):
        return jax.device_put(array, sharding)
    spec = PartitionSpec(*sharding.spec[leading:])
    own = NamedSharding(sharding.mesh, spec)
    try:
        own.shard_shape(array.shape)
    except ValueError:
        own = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.make_array_from_callback(array.shape, own, lambda index: array[index])
