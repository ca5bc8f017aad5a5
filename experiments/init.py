"""The parameters at step 0: drawn at random from the seed, imported pretrained ones, or those of another run."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from data_pipelines.errors import DataError
from experiments.config import ExperimentConfig, load_config
from experiments.data import ExperimentData
from experiments.parameters import Parameters, abstract_parameters, init_parameters, restore_parameters, take_apart
from unimp_jax.interop.loading import load_values
from unimp_jax.interop.start import Geometry, read_start, start_values
from unimp_jax.model import DecoderConfig
from unimp_jax.model.quantization import quantize_layers


def is_run(folder: Path) -> bool:
    """Returns whether a folder is a run folder."""
    return (folder / "config.json").is_file() and (folder / "vocabulary").is_dir()


def vocabulary_of_init(config: ExperimentConfig) -> Path | None:
    """Returns the vocabulary folder of the run in `init_from`; None if the vocabulary is built from the data."""
    return config.init_from / "vocabulary" if config.init_from is not None and is_run(config.init_from) else None


def with_init_geometry(config: ExperimentConfig) -> ExperimentConfig:
    """Returns the experiment with the geometry, the tokenizer and the base rows of `init_from`.

    What is a choice of training, not of geometry, stays the experiment's own: dropout, the images that a token attends
    to, and whether a new resampler or projector sees the class token and the output after a last norm.

    Raises:
      DataError: it is a run whose configuration cannot be read, or has no tokenizer.
      WeightsError: it is neither a run nor imported weights.
      ValueError: its parts do not fit the experiment's.
    """
    if config.init_from is None:
        return config
    if is_run(config.init_from):
        return with_geometry_of_run(config, config.init_from)
    geometry = read_start(config.init_from).geometry
    ours, vocabulary = config.model, config.vocabulary
    vision, gated, decoder = geometry.vision, geometry.gated, geometry.decoder
    if vision and not (geometry.resampler or geometry.projector):
        class_token = ours.vision.class_token_out and vision.class_token
        norm = "none" if (vision.norm, ours.vision.norm) == ("last", "none") else vision.norm
        vision = dataclasses.replace(vision, class_token_out=class_token, norm=norm)
    if gated:
        gated = dataclasses.replace(gated, attend=ours.gated.attend)
    if decoder:
        rows = decoder.vocab_size + decoder.new_tokens
        decoder = with_dropout_of(ours.decoder, decoder)
        tokenizer = vocabulary.tokenizer or str(config.init_from / "tokenizer")
        if not vocabulary.tokenizer and not (config.init_from / "tokenizer").is_dir():
            raise DataError(
                f"{config.init_from} has no tokenizer; give that of the language model with --vocabulary.tokenizer"
            )
        vocabulary = dataclasses.replace(vocabulary, tokenizer=tokenizer, base_size=max(vocabulary.base_size, rows))
    geometry = dataclasses.replace(geometry, vision=vision, gated=gated, decoder=decoder)
    return dataclasses.replace(config, model=geometry.of_model(ours), vocabulary=vocabulary)


def with_geometry_of_run(config: ExperimentConfig, run: Path) -> ExperimentConfig:
    """Returns the experiment with the geometry and the vocabulary of a run, but its own choice of item attributes.
    Raises ValueError if it needs image codes that the run lacks, or differs in adapters or quantisation."""
    before = load_config(run / "config.json")
    ours, theirs = config.model, before.model
    geometry, decoder = Geometry.of(theirs), with_dropout_of(ours.decoder, theirs.decoder)
    gated = geometry.gated and dataclasses.replace(geometry.gated, attend=ours.gated.attend)
    geometry = dataclasses.replace(geometry, gated=gated, decoder=decoder)
    if ours.adapters != theirs.adapters:
        raise ValueError(
            f"init_from {run}: its adapters are {theirs.adapters}; to merge them, export the run and import the export"
        )
    if ours.decoder_quantization != theirs.decoder_quantization:
        raise ValueError(
            f"init_from {run}: its model.decoder_quantization is {theirs.decoder_quantization}; to change it, "
            "export the run and import the export"
        )
    shown = config.vocabulary
    if shown.image_codes not in (None, before.vocabulary.image_codes):
        raise ValueError(
            f"init_from {run}: this run takes over its tokens, which do not include the codes of {shown.image_codes}"
        )
    vocabulary = dataclasses.replace(
        before.vocabulary, attributes=shown.attributes, attribute_words=shown.attribute_words
    )
    return dataclasses.replace(config, model=geometry.of_model(ours), vocabulary=vocabulary, content=before.content)


def with_dropout_of(ours: DecoderConfig, initial: DecoderConfig) -> DecoderConfig:
    """Returns the geometry of an initial decoder with the experiment's own dropout."""
    return dataclasses.replace(initial, dropout=ours.dropout, free_row_dropout=ours.free_row_dropout)


def initial_parameters(config: ExperimentConfig, mesh: Mesh, data: ExperimentData | None = None) -> Parameters:
    """Returns the parameters at step 0, with the content of the tokens of `data`; the values of `init_from` are written
    in place. Raises WeightsError, CheckpointError or DataError if `init_from` is damaged or incomplete."""
    if config.init_from is not None and is_run(config.init_from):
        return parameters_of_run(config, config.init_from, mesh)
    if config.model.decoder_quantization != "none":
        model = dataclasses.replace(config.model, decoder_quantization="none")
        dense = initial_parameters(dataclasses.replace(config, model=model), mesh, data)
        return quantized(config, dense, mesh)
    if config.init_from is None:
        return with_content(init_parameters(config, mesh), data)
    # Imported weights fill the parts that they have, except embedding rows that only the model has.
    filled = [part for part in read_start(config.init_from).geometry.parts if part != "embeddings"]
    parameters = init_parameters(config, mesh, filled)
    values = start_values(config.init_from, config.model)
    trainable, frozen = load_values((parameters.trainable, parameters.frozen), values)
    return with_content(dataclasses.replace(parameters, trainable=trainable, frozen=frozen), data)


def with_content(parameters: Parameters, data: ExperimentData | None) -> Parameters:
    """Returns the parameters with the content of the catalogue's tokens, if there is any, written in place."""
    if data is None or data.config.content.is_empty:
        return parameters
    (frozen,) = load_values((parameters.frozen,), [("embeddings/content", (), data.content)])
    return dataclasses.replace(parameters, frozen=frozen)


def quantized(config: ExperimentConfig, dense: Parameters, mesh: Mesh) -> Parameters:
    """Returns the parameters with the decoder's matrices quantised; both versions are in memory for a moment."""
    model = nnx.merge(dense.graph, dense.trainable, dense.frozen)
    model.config = config.model
    with jax.set_mesh(mesh):
        quantize_layers(model.decoder, config.model.decoder_quantization)
    parameters, places = take_apart(config, model), abstract_parameters(config, mesh)
    frozen = jax.tree.map(lambda x, place: jax.device_put(x, place.sharding), parameters.frozen, places.frozen)
    return dataclasses.replace(parameters, frozen=frozen)


def parameters_of_run(config: ExperimentConfig, run: Path, mesh: Mesh) -> Parameters:
    """Returns the parameters of a run's latest checkpoint, divided as in this experiment, each array read directly in
    this experiment's dtype and sharding."""
    here = abstract_parameters(config, mesh)
    arrays = dict([*nnx.to_flat_state(here.trainable), *nnx.to_flat_state(here.frozen)])
    parameters = abstract_parameters(dataclasses.replace(load_config(run / "config.json"), mesh=config.mesh), mesh)
    parameters = with_values(parameters, arrays)
    read, _ = restore_parameters(run, "latest", parameters, config.checkpoint)
    return with_values(here, dict([*nnx.to_flat_state(read.trainable), *nnx.to_flat_state(read.frozen)]))


def with_values(parameters: Parameters, values: Mapping[Any, Any]) -> Parameters:
    """Returns the parameters with other values, looked up by path, and divided in the same way."""
    trainable, frozen = (
        nnx.map_state(lambda path, _: values[path], state) for state in (parameters.trainable, parameters.frozen)
    )
    return Parameters(parameters.graph, trainable, frozen)
