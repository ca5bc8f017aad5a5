"""Modules whose every parameter is one array of a table, filled from weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimp_jax.interop.checked import check_arrays, read_finite
from unimp_jax.interop.layout import Piece, Table
from unimp_jax.interop.weights import Weights

M = TypeVar("M", bound=nnx.Module)


def filled(make: Callable[[], M], table: Table, weights: Weights) -> M:
    """A module with these weights, float32.

    Raises:
      WeightsError: an array is missing, has another shape, is of a type that weights are not, or not finite.
    """
    graph, abstract = nnx.split(nnx.eval_shape(make))
    flat = {"/".join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(abstract)}
    pieces = list(pieces_of(table, {name: variable.shape for name, (_, variable) in flat.items()}))
    check_arrays(weights, {piece.key: piece.their_shape for piece in pieces})
    values = {name: np.empty(variable.shape, np.float32) for name, (_, variable) in flat.items()}
    for piece in pieces:
        values[piece.entry.ours[0]][piece.index] = piece.to_ours(read_finite(weights, piece.key))[0]
    state = [(path, variable.replace(jnp.asarray(values[name]))) for name, (path, variable) in flat.items()]
    return nnx.merge(graph, nnx.from_flat_state(state))


def pieces_of(table: Table, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Piece]:
    """Every array that the table asks of theirs, which together are all that the module has."""
    assert sorted(shapes) == sorted(one.ours[0] for one in table), "the table names each parameter once"
    for one in table:
        shape = tuple(shapes[one.ours[0]])
        if one.stack == "one":
            yield Piece(one.theirs, one, (), shape)
        else:
            yield from (Piece(one.theirs.format(layer), one, (layer,), shape[1:]) for layer in range(shape[0]))
