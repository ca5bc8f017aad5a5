"""A run's parameters, taken apart into what trains and what does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from experiments.config import ExperimentConfig
from unimp_jax.model import PARTS, Part, UniMP, part_of
from unimp_jax.model.decoder import FrozenTable
from unimp_jax.model.quantization import Quantized
from unimp_jax.sharding import abstract_model, init_model


@dataclasses.dataclass(frozen=True, eq=False)
class Parameters:
    """A model taken apart: its structure, what trains and what does not."""

    graph: nnx.GraphDef
    trainable: Any
    frozen: Any


def init_parameters(config: ExperimentConfig, mesh: Mesh, blank: Collection[Part] = ()) -> Parameters:
    """New parameters in their shardings, zeros in `blank` parts; their types are those of `kept_in`."""
    return take_apart(config, init_model(config.model, mesh, config.seed, blank=blank, dtypes=kept_in(config)))


def abstract_parameters(config: ExperimentConfig, mesh: Mesh) -> Parameters:
    """Shapes, types and shardings of what `init_parameters` gives."""
    graph, state = abstract_model(config.model, mesh, kept_in(config))
    return take_apart(config, nnx.merge(graph, state))


def kept_in(config: ExperimentConfig) -> dict[Part, str]:
    """The type that each part's parameters are kept in, whatever `model.param_dtype` says.

    What trains is kept in float32, and so are its moments: in bfloat16 an update of less than 1/256 of a weight is
    lost, and a second moment that is to keep .999 of itself never shrinks. What does not train is kept in the type that
    it is computed in.
    """
    return {part: "float32" if part in config.training.trains else config.model.compute_dtype for part in PARTS}


def take_apart(config: ExperimentConfig, model: UniMP) -> Parameters:
    """
    Raises:
      ValueError: no part trains.
    """
    trains = frozenset(config.training.trains)
    if not trains:
        raise ValueError("training.trains names no part: nothing would be trained")

    def is_trained(path: tuple[Any, ...], variable: Any) -> bool:
        return part_of(path) in trains and not isinstance(variable, FrozenTable | Quantized)

    graph, trainable, frozen = nnx.split(model, is_trained, ...)  # type: ignore[misc]
    return Parameters(graph, trainable, frozen)
