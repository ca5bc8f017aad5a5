"""Which of their arrays fills which slice of ours, before any of them is read."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from unimp_jax.interop.checked import check_arrays, read_finite
from unimp_jax.interop.layout import Piece, Stack, Table, WeightsError, abstract_parameters, numbers, pieces, some
from unimp_jax.interop.weights import Weights, in_file_order
from unimp_jax.model import ModelConfig, Part

Slice = tuple[str, tuple[int, ...]]
"""A parameter of ours, and the index of a layer in its leading axes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """One file or folder of weights.

    Attributes:
      table: what is looked for in it.
      optional: keys that begin so may be absent, as another source has them.
    """

    weights: Weights
    table: Table
    optional: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Match:
    """What fills what.

    Attributes:
      fillings: for each source, key -> (piece, the slices of ours that it fills).
      unused: name of a source -> its keys that nothing of ours asks for.
      replaced: name of a source -> its keys in whose place another source's array is taken.
    """

    fillings: list[tuple[Weights, dict[str, tuple[Piece, set[Slice]]]]]
    unused: dict[str, list[str]]
    replaced: dict[str, list[str]]

    def arrays(self) -> Iterator[tuple[Slice, np.ndarray]]:
        """Every slice with its values, read one array at a time, in the order of the files."""
        for weights, filled in self.fillings:
            for key in in_file_order(weights, filled):
                piece, wanted = filled[key]
                for ours, array in zip(piece.entry.ours, piece.to_ours(read_finite(weights, key)), strict=True):
                    if (ours, piece.index) in wanted:
                        yield (ours, piece.index), array


def match(sources: Iterable[Source], config: ModelConfig, parts: Iterable[Part]) -> Match:
    """Later sources come before earlier ones.

    Raises:
      WeightsError: an array is missing, of a type that weights are not, or of another shape than the geometry asks for.
    """
    sources, parts = list(sources), set(parts)
    parameters = abstract_parameters(config)
    winner: dict[Slice, int] = {}
    found: list[dict[str, Piece]] = []
    for number, source in enumerate(sources):
        asked = {piece.key: piece for piece in pieces(source.table, config, parameters)}
        shapes = {key: piece.their_shape for key, piece in asked.items()}
        found.append({key: asked[key] for key in check_arrays(source.weights, shapes, source.optional)})
        for piece in found[number].values():
            winner |= {(ours, piece.index): number for ours in piece.entry.ours}
    wanted = {
        (name, index)
        for name in parameters
        if name.split("/")[0] in parts
        for _, index in numbers(config, stack_of(name))
    }
    if wanted - set(winner):
        empty = {"/".join([name, *map(str, index)]) for name, index in wanted - set(winner)}
        names = ", ".join(source.weights.name for source in sources)
        raise WeightsError(f"{names}: nothing for {len(empty)} of the model's parameters: {some(empty)}")
    fillings, replaced = [], {}
    for number, source in enumerate(sources):
        filled, lost = {}, []
        for key, piece in found[number].items():
            slices = {(ours, piece.index) for ours in piece.entry.ours if winner[ours, piece.index] == number}
            if slices:
                filled[key] = (piece, slices)
            else:
                lost.append(key)
        fillings.append((source.weights, filled))
        replaced[source.weights.name] = lost
    unused = {
        source.weights.name: sorted(set(source.weights.keys()) - set(keys))
        for source, keys in zip(sources, found, strict=True)
    }
    return Match(fillings, unused, replaced)


def stack_of(name: str) -> Stack:
    """How our own parameter is stacked."""
    part, *rest = name.split("/")
    if part == "gated":
        return "gated"
    stacks: dict[str, Stack] = {"decoder": "decoder", "vision": "vision", "resampler": "resampler"}
    return stacks[part] if rest[0] in ("layers", "blocks") else "one"


def patterns(keys: Iterable[str]) -> list[str]:
    """Keys that differ in numbers alone, as one line each."""
    counts = Counter(re.sub(r"\d+", "*", key) for key in keys)
    return [key if count == 1 else f"{key} ({count})" for key, count in sorted(counts.items())]
