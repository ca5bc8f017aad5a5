"""Writes parameters on a mesh to files of other packages, one of their arrays at a time."""

import dataclasses
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unimp_jax.interop.layout import Table, WeightsError, by_name, placements, some, unfilled
from unimp_jax.interop.shards import SHARD_BYTES, write_shards
from unimp_jax.model import ModelConfig


def named(*states: Any) -> dict[str, jax.Array]:
    """Returns name, such as decoder/norm/scale, -> array for all parameters of some states."""
    return {name: variable[...] for name, variable in by_name(*states).items()}


def their_arrays(parameters: Mapping[str, jax.Array], table: Table, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (key, array) for all arrays of a table; raises WeightsError if the table omits a part of a parameter."""
    shapes = {name: array.shape for name, array in parameters.items()}
    planned = list(placements(table, shapes))
    if left := unfilled(shapes, ((ours, piece.index) for piece in planned for ours in piece.entry.ours)):
        raise WeightsError(f"the format cannot store {some(left)}")
    for piece in planned:
        slices = (to_host(parameters[ours], piece.index).astype(dtype, copy=False) for ours in piece.entry.ours)
        yield piece.key, piece.to_theirs([*slices])


def refuse_others(format: str, config: ModelConfig, wanted: Mapping[str, Any]) -> None:
    """Raises WeightsError, which names the fields and their required values, if a format does not have such an
    architecture. `wanted` maps fields, such as vision.class_token, to the values that it requires; gated.mlp_width may
    also be given by gated.mlp_ratio."""
    gated = dataclasses.replace(config.gated, mlp_width=config.gated.hidden_width(config.decoder.width))
    config = dataclasses.replace(config, gated=gated)
    values = {name: attrgetter(name)(config) for name in wanted}
    wrong = [
        f"{name} is {values[name]!r} and must be {right!r}" for name, right in wanted.items() if values[name] != right
    ]
    if wrong:
        raise WeightsError(f"{format} does not support this geometry: {'; '.join(wrong)}")


def to_host(array: jax.Array, index: tuple[int, ...]) -> np.ndarray:
    """Copies to the host a slice of an array that may be sharded over several processes."""
    if array.is_fully_replicated and next(iter(array.devices())).platform == "cpu":
        return np.asarray(array.addressable_data(0))[index]  # without a copy
    part = array[index]
    if part.is_fully_addressable:
        return np.asarray(part)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(part, tiled=True))


def write_weights(
    folder: Path,
    parameters: Mapping[str, jax.Array],
    table: Table,
    *,
    unread: Mapping[str, np.ndarray],
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes all parameters as shards of at most `shard_bytes` (a larger array has its own shard).

    Args:
      unread: Arrays that the format has but no answer depends on.
    """

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        yield from ((key, array.astype(dtype)) for key, array in unread.items())
        yield from their_arrays(parameters, table, dtype)

    write_shards(folder, arrays(), shard_bytes)
