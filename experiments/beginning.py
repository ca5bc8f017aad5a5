"""What a run begins with: parameters drawn by the seed, imported ones, or those of another run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from flax import nnx
from jax.sharding import Mesh

from data_pipelines.errors import DataError
from experiments.config import ExperimentConfig, load_config
from experiments.parameters import Parameters, abstract_parameters, init_parameters
from unimp_jax.interop.placing import place
from unimp_jax.interop.start import Geometry, read_start, start_values
from unimp_jax.training.checkpoint import Checkpoints
from unimp_jax.training.frozen import load_frozen


def is_run(start: Path) -> bool:
    """Whether a start is the folder of a run."""
    return (start / "config.json").is_file() and (start / "vocabulary").is_dir()


def first_vocabulary(config: ExperimentConfig) -> Path | None:
    """The vocabulary of the run that is begun with; None: it is built."""
    return config.start / "vocabulary" if config.start is not None and is_run(config.start) else None


def adopt(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment with the geometry, the tokenizer and the base rows of its start.

    What is a choice of training, not of geometry, stays the experiment's: dropout, which images a token sees, and
    whether the class token is shown to a resampler that is new.

    Raises:
      DataError: the start is a run whose configuration cannot be read, or has no tokenizer.
      WeightsError: the start is none.
      ValueError: its parts do not fit the experiment's.
    """
    if config.start is None:
        return config
    if is_run(config.start):
        return adopt_run(config, config.start)
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


def adopt_run(config: ExperimentConfig, start: Path) -> ExperimentConfig:
    """The experiment with the geometry and the vocabulary of a run; what prompts say of items stays its own choice.

    Raises:
      ValueError: it needs codes of images that the run does not know.
    """
    before = load_config(start / "config.json")
    ours, theirs = config.model, before.model
    geometry = Geometry(
        vision=theirs.vision,
        resampler=theirs.resampler,
        gated=dataclasses.replace(theirs.gated, attend=ours.gated.attend),
        decoder=dataclasses.replace(theirs.decoder, dropout=ours.decoder.dropout),
    )
    shown = config.vocabulary
    if shown.image_codes not in (None, before.vocabulary.image_codes):
        raise ValueError(
            f"a run begins with the tokens of its start, and those of {start} are not for the codes of "
            f"{shown.image_codes}"
        )
    vocabulary = dataclasses.replace(
        before.vocabulary, attributes=shown.attributes, attribute_words=shown.attribute_words
    )
    return dataclasses.replace(config, model=geometry.of_model(ours), vocabulary=vocabulary)


def begin(config: ExperimentConfig, mesh: Mesh) -> Parameters:
    """The parameters of step 0; where there is a start, its values are written in place.

    Raises:
      WeightsError, CheckpointError: the start is damaged, or of another geometry.
      DataError: the start is a run without a whole checkpoint.
    """
    if config.start is None:
        return init_parameters(config, mesh)
    if is_run(config.start):
        return begin_with_run(config, config.start, mesh)
    # A start fills the parts it has, but for rows of the embeddings that only the model has.
    filled = [part for part in read_start(config.start).geometry.parts if part != "embeddings"]
    parameters = init_parameters(config, mesh, filled)
    values = start_values(config.start, config.model)
    trainable, frozen = place((parameters.trainable, parameters.frozen), values)
    return dataclasses.replace(parameters, trainable=trainable, frozen=frozen)


def begin_with_run(config: ExperimentConfig, start: Path, mesh: Mesh) -> Parameters:
    """The parameters of a run's latest checkpoint, divided into what trains here and what does not.

    Each is read in the type and the place that it has here, and is nowhere else.
    """
    here = abstract_parameters(config, mesh)
    places = dict([*nnx.to_flat_state(here.trainable), *nnx.to_flat_state(here.frozen)])
    there = abstract_parameters(dataclasses.replace(load_config(start / "config.json"), mesh=config.mesh), mesh)
    trainable, frozen = (
        nnx.map_state(lambda path, _: places[path], state) for state in (there.trainable, there.frozen)
    )
    with Checkpoints(start / "checkpoints", config.checkpoint, reads_only=True) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise DataError(f"{start} has no whole checkpoint yet: run `unimp train` on it first")
        read = nnx.to_flat_state(checkpoints.restore_parameters(step, trainable))
    values = dict([*read, *nnx.to_flat_state(load_frozen(start / "frozen", frozen))])
    ours = (nnx.map_state(lambda path, _: values[path], state) for state in (here.trainable, here.frozen))
    return Parameters(here.graph, *ours)
