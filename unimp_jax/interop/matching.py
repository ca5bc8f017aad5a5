"""Matches arrays of other packages to slices of our parameters, before any array is read."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimp_jax.interop.checked import check_arrays, read_finite
from unimp_jax.interop.layout import Placement, Shapes, Slice, Table, WeightsError, by_name, placements, some, unfilled
from unimp_jax.interop.weights import Weights, renamed
from unimp_jax.model import DecoderConfig

M = TypeVar("M", bound=nnx.Module)

Values = tuple[str, tuple[int, ...], np.ndarray]
"""A parameter, the start of a block in its leading axes, and the block's values."""


@dataclasses.dataclass(frozen=True, eq=False)
class WeightSource:
    """One file or folder of weights; keys with the `optional` prefixes may be absent because another source has
    them."""

    weights: Weights
    table: Table
    optional: tuple[str, ...] = ()


def source_of(weights: Weights, tabulate: Callable[[DecoderConfig], Table], decoder: DecoderConfig) -> WeightSource:
    """Returns weights with their table; with tied embeddings, a head in the file must be a copy of the embeddings."""
    if decoder.tie_embeddings:
        untied = tabulate(dataclasses.replace(decoder, tie_embeddings=False))
        theirs = {entry.ours[0]: entry.theirs for entry in untied if entry.ours[0].startswith("embeddings/")}
        copies = {theirs[f"{ours}_head"]: key for ours, key in theirs.items() if f"{ours}_head" in theirs}
        weights = renamed(weights, lambda key: copies.get(key, key))
    return WeightSource(weights, tabulate(decoder))


@dataclasses.dataclass(frozen=True, eq=False)
class Match:
    """Which arrays fill which slices.

    Attributes:
      fillings: For each source, key -> (placement, the slices of ours that it fills).
      unused: Name of a source -> its keys that none of our parameters needs.
      replaced: Name of a source -> its keys that another source's arrays replace.
    """

    fillings: list[tuple[Weights, dict[str, tuple[Placement, set[Slice]]]]]
    unused: dict[str, list[str]]
    replaced: dict[str, list[str]]

    def arrays(self) -> Iterator[Values]:
        """Yields every slice with its values, reading one array at a time."""
        for weights, filled in self.fillings:
            for key, (piece, wanted) in filled.items():
                for ours, array in zip(piece.entry.ours, piece.to_ours(read_finite(weights, key)), strict=True):
                    if (ours, piece.index) in wanted:
                        yield ours, piece.index, array


def match(sources: Iterable[WeightSource], shapes: Shapes) -> Match:
    """Matches sources to the parameters of all `shapes`; later sources take precedence. Raises WeightsError if an array
    is missing, has a dtype that weights do not have, or another shape than the configuration requires."""
    sources = list(sources)
    winner: dict[Slice, int] = {}
    found: list[dict[str, Placement]] = []
    for number, source in enumerate(sources):
        asked = {piece.key: piece for piece in placements(source.table, shapes)}
        wanted = {key: piece.their_shape for key, piece in asked.items()}
        found.append({key: asked[key] for key in check_arrays(source.weights, wanted, source.optional)})
        for piece in found[number].values():
            winner |= {(ours, piece.index): number for ours in piece.entry.ours}
    if empty := unfilled(shapes, winner):
        names = ", ".join(source.weights.name for source in sources)
        raise WeightsError(f"{names}: {len(empty)} parameters of the model have no weights: {some(empty)}")
    fillings, unused, replaced = [], {}, {}
    for number, (source, own) in enumerate(zip(sources, found, strict=True)):
        filled = {
            key: (piece, {(ours, piece.index) for ours in piece.entry.ours if winner[ours, piece.index] == number})
            for key, piece in own.items()
        }
        fillings.append((source.weights, {key: (piece, slices) for key, (piece, slices) in filled.items() if slices}))
        replaced[source.weights.name] = [key for key, (_, slices) in filled.items() if not slices]
        unused[source.weights.name] = sorted(source.weights.arrays.keys() - own.keys())
    return Match(fillings, unused, replaced)


def filled(make: Callable[[], M], table: Table, weights: Weights) -> M:
    """Returns a module with these weights, in float32; raises WeightsError if an array is missing, has another shape,
    has a dtype that weights do not have, or is not finite."""
    graph, abstract = nnx.split(nnx.eval_shape(make))
    values = {name: np.empty(variable.shape, np.float32) for name, variable in by_name(abstract).items()}
    for name, index, array in match([WeightSource(weights, table)], {n: x.shape for n, x in values.items()}).arrays():
        values[name][index] = array

    def fill(path: tuple[str | int, ...], variable: nnx.Variable) -> nnx.Variable:
        return variable.replace(jnp.asarray(values["/".join(map(str, path))]))

    return nnx.merge(graph, nnx.map_state(fill, abstract))


def patterns(keys: Iterable[str]) -> list[str]:
    """Returns one line for each group of keys that differ only in numbers."""
    counts = Counter(re.sub(r"\d+", "*", key) for key in keys)
    return [key if count == 1 else f"{key} ({count})" for key, count in sorted(counts.items())]
