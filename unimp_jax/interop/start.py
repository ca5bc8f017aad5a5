"""A start: imported weights under our own names, with the geometry they ask for, and their tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydantic

from unimp_jax.interop.checked import check_kind, read_finite
from unimp_jax.interop.layout import WeightsError, abstract_parameters, leading_axes, numbers
from unimp_jax.interop.matching import Match, stack_of
from unimp_jax.interop.shards import ShardWriter, write_json
from unimp_jax.interop.weights import open_weights, read_json
from unimp_jax.model import (
    DecoderConfig,
    GatedCrossAttentionConfig,
    ModelConfig,
    Part,
    ResamplerConfig,
    VisionConfig,
)

FILE = "start.json"


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Of the parts that were imported; None where one was not. The decoder brings its embeddings with it."""

    vision: VisionConfig | None = None
    resampler: ResamplerConfig | None = None
    gated: GatedCrossAttentionConfig | None = None
    decoder: DecoderConfig | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        named: tuple[Part, ...] = ("vision", "resampler", "gated", "decoder")
        there = tuple(part for part in named if getattr(self, part) is not None)
        return (*there, "embeddings") if self.decoder is not None else there

    def of_model(self, others: ModelConfig) -> ModelConfig:
        """A whole model's geometry, the parts that were not imported as in `others`."""
        there = {part: getattr(self, part) for part in ("vision", "resampler", "gated", "decoder")}
        return dataclasses.replace(others, **{part: config for part, config in there.items() if config is not None})


@dataclasses.dataclass(frozen=True)
class Described:
    """What `start.json` says.

    Attributes:
      sources: where the weights came from.
      unused: keys of theirs that nothing of ours asks for.
    """

    geometry: Geometry
    sources: tuple[str, ...]
    unused: dict[str, list[str]]


def write_start(folder: Path, match: Match, config: ModelConfig, described: Described, shard_bytes: int) -> None:
    """Weights and `start.json`; one array of theirs is in memory at a time, beside a shard of ours.

    `config` is what was matched.
    """
    with ShardWriter(folder, shard_bytes) as writer:
        for (name, index), array in match.arrays():
            writer.add(key(name, index, config), array)
    write_json(folder / FILE, pydantic.TypeAdapter(Described).dump_python(described, mode="json"))


def key(name: str, index: tuple[int, ...], config: ModelConfig) -> str:
    """Layers are counted through, whatever groups a model divides them into."""
    number = 0
    for digit, base in zip(index, (config.groups, config.gated.every), strict=False):
        number = number * base + digit
    return f"{name}:{number}" if index else name


def read_start(folder: Path) -> Described:
    """
    Raises:
      WeightsError: the folder is no start.
    """
    if not (folder / FILE).is_file():
        raise WeightsError(f"{folder} is no start: it has no {FILE}; `unimp import` makes one")
    try:
        return pydantic.TypeAdapter(Described).validate_python(read_json(folder / FILE))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise WeightsError(f"{folder / FILE}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


@dataclasses.dataclass(frozen=True, eq=False)
class Values:
    """Values for a block of a parameter: `array` goes to `start` (as many numbers as the parameter has axes)."""

    name: str
    start: tuple[int, ...]
    array: np.ndarray


def start_values(folder: Path, config: ModelConfig) -> Iterator[Values]:
    """The values that a start has for a model, one array at a time.

    Rows of the start's table of new tokens become the model's base rows behind the start's own: the tokenizer that
    came with them knows them, and the model's new tokens are others.

    Raises:
      WeightsError: an array is missing, damaged, or of a shape that the model has no place for.
    """
    described = read_start(folder)
    geometry, weights = described.geometry, open_weights(folder)
    model = geometry.of_model(config)
    theirs, ours = abstract_parameters(model), abstract_parameters(config)
    present = set(weights.keys())
    for name, variable in theirs.items():
        if name.split("/")[0] not in geometry.parts:
            continue
        target = {"embeddings/new": "embeddings/base", "embeddings/new_head": "embeddings/base_head"}.get(name, name)
        rows = geometry.decoder.vocab_size if target != name and geometry.decoder else 0
        shape = tuple(variable.shape[leading_axes(name) :])
        for _, index in numbers(model, stack_of(name)):
            own = key(name, index, model)
            if own not in present:
                raise WeightsError(f"{folder}: lacks {own}")
            found = weights.shape(own)
            room = tuple(ours[target].shape[leading_axes(name) :]) if target in ours else ()
            first_fits = len(found) == len(room) > 0 and found[0] + rows <= room[0]
            is_table = target.startswith("embeddings/")
            if found != shape or not (first_fits and found[1:] == room[1:] if is_table else found == room):
                raise WeightsError(f"{folder}: {own} has shape {found}, the model has room for {room}")
            check_kind(weights, own)
            array = read_finite(weights, own)
            yield Values(target, (*index, rows, *[0] * (array.ndim - 1)) if array.ndim else index, array)
