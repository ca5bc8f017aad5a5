"""A run's parameters before its first step: drawn by the seed, or imported."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from data_pipelines.errors import DataError
from experiments.config import ExperimentConfig
from unimp_jax.interop.placing import place
from unimp_jax.interop.start import read_start, start_values
from unimp_jax.sharding import init_model


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


def init_parameters(config: ExperimentConfig, mesh: Mesh) -> Parameters:
    """New parameters in their shardings; what does not train is kept in the type it is computed in."""
    model = init_model(config.model, mesh, config.seed)
    trains = frozenset(config.training.trains)
    graph, trainable, frozen = nnx.split(model, lambda path, _: path[0] in trains, ...)  # type: ignore[misc]
    if not jax.tree.leaves(trainable):
        raise ValueError("training.trains names no part: nothing would be trained")
    dtype = jnp.dtype(config.model.compute_dtype)
    return Parameters(graph, trainable, jax.tree.map(lambda x: x.astype(dtype), frozen))


def begin(config: ExperimentConfig, parameters: Parameters) -> Parameters:
    """New parameters, over which the start's values are written in place.

    Raises:
      WeightsError: the start is damaged, or of another geometry.
    """
    if config.start is None:
        return parameters
    values = start_values(config.start, config.model)
    trainable, frozen = place((parameters.trainable, parameters.frozen), values)
    return dataclasses.replace(parameters, trainable=trainable, frozen=frozen)
