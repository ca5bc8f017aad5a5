"""A run's parameters, taken apart into what trains and what does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from experiments.config import ExperimentConfig
from unimp_jax.model import PARTS, Part, UniMP
from unimp_jax.sharding import abstract_model, init_model


@dataclasses.dataclass(frozen=True, eq=False)
class Parameters:
    """A model taken apart: its structure, what trains and what does not."""

    graph: nnx.GraphDef
    trainable: Any
    frozen: Any


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
