"""A start: a folder of imported weights under our own names, with their configuration and tokenizer."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pydantic

from unimp_jax.interop.checked import check_kind, read_finite
from unimp_jax.interop.layout import Shapes, Table, WeightsError, entry, model_shapes, placements
from unimp_jax.interop.matching import Match, Values
from unimp_jax.interop.shards import write_json, write_shards
from unimp_jax.interop.weights import open_weights, read_described
from unimp_jax.model import (
    AdapterConfig,
    DecoderConfig,
    GatedCrossAttentionConfig,
    ModelConfig,
    Part,
    ProjectorConfig,
    ResamplerConfig,
    VisionConfig,
)

FILE = "start.json"


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Configurations of the imported parts, None for others; the decoder includes its embeddings."""

    vision: VisionConfig | None = None
    resampler: ResamplerConfig | None = None
    gated: GatedCrossAttentionConfig | None = None
    decoder: DecoderConfig | None = None
    projector: ProjectorConfig | None = None

    @classmethod
    def of(cls, model: ModelConfig) -> Self:
        """Returns the geometry of a complete model."""
        if model.interleaved:
            resampler = model.resampler if model.projector.kind == "resampler" else None
            return cls(model.vision, resampler, None, model.decoder, model.projector)
        return cls(model.vision, model.resampler, model.gated, model.decoder)

    @property
    def parts(self) -> tuple[Part, ...]:
        named: tuple[Part, ...] = ("vision", "resampler", "gated", "projector", "decoder")
        if self.projector is not None:  # the resampler is part of the projector
            named = ("vision", "projector", "decoder")
        given = tuple(part for part in named if getattr(self, part) is not None)
        return (*given, "embeddings") if self.decoder is not None else given

    def of_model(self, others: ModelConfig) -> ModelConfig:
        """Returns a complete model configuration, with parts that were not imported as in `others`."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fusion = "interleaved" if self.projector else "cross_attention" if self.gated else others.fusion
        imported = {part: config for part, config in own.items() if config is not None}
        return dataclasses.replace(others, fusion=fusion, **imported)


@dataclasses.dataclass(frozen=True)
class Described:
    """The content of `start.json`."""

    geometry: Geometry
    sources: tuple[str, ...]
    unused: dict[str, list[str]]


def write_start(folder: Path, match: Match, shapes: Shapes, described: Described, shard_bytes: int) -> None:
    """Writes weights and `start.json`; memory holds one source array and one output shard at a time."""
    keys = {(piece.entry.ours[0], piece.index): piece.key for piece in placements(start_table(shapes), shapes)}
    write_shards(folder, ((keys[name, index], array) for name, index, array in match.arrays()), shard_bytes)
    write_json(folder / FILE, pydantic.TypeAdapter(Described).dump_python(described, mode="json"))


def start_table(shapes: Shapes) -> Table:
    """Returns the array names of a start; layers are numbered consecutively, regardless of a model's groups."""
    table = []
    for name, shape in shapes.items():
        part, *rest = name.split("/")
        stacked = rest[0] in ("blocks", "layers")
        layers = 1 + (part == "decoder") if stacked else int(part == "gated")
        axes = " ".join("abcd"[: len(shape) - layers])
        table.append(entry(f"{name}:{{}}" if layers else name, name, f"{axes} -> {axes}"))
    return table


def read_start(folder: Path) -> Described:
    """Reads the description of a start.

    Raises:
      WeightsError: The folder is not a start.
    """
    if not (folder / FILE).is_file():
        raise WeightsError(
            f"{folder} is not a folder of imported weights: there is no {FILE}; `unimp import` writes one"
        )
    return read_described(folder / FILE, Described)


def start_values(folder: Path, config: ModelConfig) -> Iterator[Values]:
    """Yields the values of a start for a model, one array at a time.

    Rows of the start's table of new tokens become base rows of the model, after the start's own base rows: the imported
    tokenizer contains them, whereas the model's new tokens are different ones.

    Raises:
      WeightsError: An array is missing, damaged, or of a shape that the model has no place for.
    """
    geometry, weights = read_start(folder).geometry, open_weights(folder)
    ours, theirs = (
        model_shapes(config),
        model_shapes(geometry.of_model(dataclasses.replace(config, adapters=AdapterConfig()))),
    )
    for piece in placements(start_table(theirs), theirs):
        (name,), key = piece.entry.ours, piece.key
        if name.split("/")[0] not in geometry.parts or (name.startswith("vision/norm/") and name not in ours):
            continue  # a tower's final norm, where the model reads the layer before it
        if key not in weights.arrays:
            raise WeightsError(f"{folder}: the parameter {key} is missing")
        check_kind(weights, key)
        found, index = weights.arrays[key].shape, piece.index
        room = ours.get(name, ())[len(index) :]
        fits = found == piece.shape == room
        if name.startswith("embeddings/"):
            if name.startswith("embeddings/new") and geometry.decoder:
                name, index = name.replace("new", "base"), (geometry.decoder.vocab_size,)
            room = ours.get(name, ())
            fits = found == piece.shape and found[1:] == room[1:] and found[0] + sum(index) <= sum(room[:1])
        if not fits:
            raise WeightsError(f"{folder}: {key} has shape {found}, but the model requires {room}")
        yield name, index, read_finite(weights, key)
