"""Parameters on a mesh into files of other packages, one of their arrays at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from unimp_jax.interop.layout import Table, WeightsError, abstract_parameters, numbers, pieces, some
from unimp_jax.interop.matching import stack_of
from unimp_jax.interop.shards import SHARD_BYTES, ShardWriter
from unimp_jax.model import ModelConfig


def named(*states: nnx.State) -> dict[str, jax.Array]:
    """Name, such as decoder/norm/scale, -> array, of all parameters of some states."""
    return {"/".join(map(str, path)): variable[...] for state in states for path, variable in nnx.to_flat_state(state)}


def their_arrays(
    parameters: dict[str, jax.Array], config: ModelConfig, table: Table, dtype: str
) -> Iterator[tuple[str, np.ndarray]]:
    """(key, array) of all that a table asks for.

    Raises:
      WeightsError: the table leaves out, or writes twice, a part of a parameter.
    """
    wanted = [(name, index) for name in abstract_parameters(config) for _, index in numbers(config, stack_of(name))]
    planned = list(pieces(table, config))
    written = [(ours, piece.index) for piece in planned for ours in piece.entry.ours]
    if len(set(written)) < len(written) or set(written) != set(wanted):
        wrong = {"/".join([name, *map(str, index)]) for name, index in set(written) ^ set(wanted)}
        raise WeightsError(f"the format has no place for {some(wrong)}")
    for piece in planned:
        slices = (to_host(parameters[ours], piece.index).astype(dtype, copy=False) for ours in piece.entry.ours)
        yield piece.key, piece.to_theirs([*slices])


def to_host(array: jax.Array, index: tuple[int, ...]) -> np.ndarray:
    """A slice of an array that may lie on devices of several processes."""
    if array.is_fully_replicated and next(iter(array.devices())).platform == "cpu":
        return np.asarray(array.addressable_data(0))[index]  # where it lies
    part = array[index]
    if part.is_fully_addressable:
        return np.asarray(part)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(part, tiled=True))


def write_weights(
    folder: Path,
    parameters: dict[str, jax.Array],
    config: ModelConfig,
    table: Table,
    *,
    unread: dict[str, np.ndarray] | None = None,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """All of a model's parameters as shards of at most `shard_bytes` (an array larger than that has its own).

    Args:
      unread: arrays that the format has and no answer depends on.
    """
    with ShardWriter(folder, shard_bytes) as writer:
        for key, array in (unread or {}).items():
            writer.add(key, array.astype(dtype))
        for key, array in their_arrays(parameters, config, table, dtype):
            writer.add(key, array)
