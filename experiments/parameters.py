"""A run's parameters before its first step: drawn by the seed, or imported."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from data_pipelines.errors import DataError
from experiments.config import ExperimentConfig
from unimp_jax.interop.placing import place
from unimp_jax.interop.start import read_start, start_values
from unimp_jax.model import PARTS, Part, UniMP
from unimp_jax.sharding import abstract_model, init_model


@dataclasses.dataclass(frozen=True, eq=False)
class Parameters:
    """A model taken apart: its structure, what trains and what does not."""

    graph: nnx.GraphDef
    trainable: Any
    frozen: Any


def adopt(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment with the geometry, the tokenizer and the base rows of its start.

    What is a choice of training, not of geometry, stays the experiment's: dropout, which images a token sees, and
    whether the class token is shown to a resampler that is new.

    Raises:
      WeightsError: the start is none.
      ValueError: its parts do not fit the experiment's.
    """
    if config.start is None:
        return config
    geometry = read_start(config.start).geometry
    ours, vocabulary = config.model, config.vocabulary
    vision, gated, decoder = geometry.vision, geometry.gated, geometry.decoder
    if vision and not geometry.resampler:
        vision = dataclasses.replace(vision, class_token_out=ours.vision.class_token_out)
    if gated:
        gated = dataclasses.replace(gated, attend=ours.gated.attend)
    if decoder:
        rows = decoder.vocab_size + decoder.new_tokens
        decoder = dataclasses.replace(decoder, dropout=ours.decoder.dropout)
        tokenizer = vocabulary.tokenizer or str(config.start / "tokenizer")
        if not vocabulary.tokenizer and not (config.start / "tokenizer").is_dir():
            raise DataError(f"{config.start} has no tokenizer; name the language model's with --vocabulary.tokenizer")
        vocabulary = dataclasses.replace(vocabulary, tokenizer=tokenizer, base_size=max(vocabulary.base_size, rows))
    geometry = dataclasses.replace(geometry, vision=vision, gated=gated, decoder=decoder)
    return dataclasses.replace(config, model=geometry.of_model(ours), vocabulary=vocabulary)


def init_parameters(config: ExperimentConfig, mesh: Mesh, blank: Collection[Part] = ()) -> Parameters:
    """New parameters in their shardings, zeros in `blank` parts; what does not train is kept in the type it is
    computed in."""
    return take_apart(config, init_model(config.model, mesh, config.seed, blank=blank, dtypes=kept_in(config)))


def abstract_parameters(config: ExperimentConfig, mesh: Mesh) -> Parameters:
    """Shapes, types and shardings of what `init_parameters` gives."""
    graph, state = abstract_model(config.model, mesh, kept_in(config))
    return take_apart(config, nnx.merge(graph, state))


def kept_in(config: ExperimentConfig) -> dict[Part, str]:
    """The type of parts whose parameters are not kept in the model's."""
    return {part: config.model.compute_dtype for part in PARTS if part not in config.training.trains}


def take_apart(config: ExperimentConfig, model: UniMP) -> Parameters:
    """
    Raises:
      ValueError: no part trains.
    """
    trains = frozenset(config.training.trains)
    if not trains:
        raise ValueError("training.trains names no part: nothing would be trained")
    graph, trainable, frozen = nnx.split(model, lambda path, _: path[0] in trains, ...)  # type: ignore[misc]
    return Parameters(graph, trainable, frozen)


def begin(config: ExperimentConfig, mesh: Mesh) -> Parameters:
    """The parameters of step 0; where there is a start, its values are written in place.

    Raises:
      WeightsError: the start is damaged, or of another geometry.
    """
    if config.start is None:
        return init_parameters(config, mesh)
    # A start fills the parts it has, but for rows of the embeddings that only the model has.
    filled = [part for part in read_start(config.start).geometry.parts if part != "embeddings"]
    parameters = init_parameters(config, mesh, filled)
    values = start_values(config.start, config.model)
    trainable, frozen = place((parameters.trainable, parameters.frozen), values)
    return dataclasses.replace(parameters, trainable=trainable, frozen=frozen)
