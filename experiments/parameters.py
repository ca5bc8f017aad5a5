"""The parameters of a run, divided into trainable and frozen ones: new ones, or those of a checkpoint."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from flax import nnx
from jax.sharding import Mesh

from data_pipelines.errors import DataError
from experiments.config import ExperimentConfig
from unimp_jax.model import PARTS, Part, UniMP, part_of
from unimp_jax.model.decoder import FrozenTable
from unimp_jax.model.quantization import Quantized
from unimp_jax.sharding import abstract_model, init_model
from unimp_jax.training.checkpoint import CheckpointConfig, Checkpoints
from unimp_jax.training.frozen import load_frozen
from unimp_jax.training.reading import DamagedError

Checkpoint = Literal["best", "latest"]


@dataclasses.dataclass(frozen=True, eq=False)
class Parameters:
    """A model divided into its structure, its trainable and its frozen parameters."""

    graph: nnx.GraphDef
    trainable: Any
    frozen: Any


def init_parameters(config: ExperimentConfig, mesh: Mesh, blank: Collection[Part] = ()) -> Parameters:
    """Returns new parameters in their shardings, with zeros in the `blank` parts and the dtypes of `kept_in`."""
    return take_apart(config, init_model(config.model, mesh, config.seed, blank=blank, dtypes=kept_in(config)))


def abstract_parameters(config: ExperimentConfig, mesh: Mesh) -> Parameters:
    """Returns the shapes, dtypes and shardings of the result of `init_parameters`."""
    graph, state = abstract_model(config.model, mesh, kept_in(config))
    return take_apart(config, nnx.merge(graph, state))


def kept_in(config: ExperimentConfig) -> dict[Part, str]:
    """Returns the dtype in which each part's parameters are stored, regardless of `model.param_dtype`.

    Trainable parameters and their moments are stored in float32: in bfloat16 an update of less than 1/256 of a weight
    is lost, and a second moment with a decay of .999 never shrinks. Frozen parameters are stored in the compute dtype.
    """
    return {part: "float32" if part in config.training.trains else config.model.compute_dtype for part in PARTS}


def take_apart(config: ExperimentConfig, model: UniMP) -> Parameters:
    """Divides a model into structure, trainable and frozen parameters; ValueError if no part is trained."""
    trains = frozenset(config.training.trains)
    if not trains:
        raise ValueError("training.trains is empty, so nothing would be trained")

    def is_trained(path: tuple[Any, ...], variable: Any) -> bool:
        return part_of(path) in trains and not isinstance(variable, FrozenTable | Quantized)

    graph, trainable, frozen = nnx.split(model, is_trained, ...)  # type: ignore[misc]
    return Parameters(graph, trainable, frozen)


def step_of(checkpoints: Checkpoints, which: Checkpoint, command: str) -> int:
    """Returns the step of a checkpoint; without one, DataError, which names the `command` that trains such runs."""
    step = checkpoints.best() if which == "best" else checkpoints.latest()
    if step is None:
        raise DataError(f"{checkpoints.folder.parent} has no complete checkpoint yet; run `{command}` on it first")
    return step


def restore_parameters(
    run: Path, which: Checkpoint, parameters: Parameters, config: CheckpointConfig
) -> tuple[Parameters, int]:
    """Reads only the parameters of a checkpoint, divided as the abstract `parameters`, directly into their shardings,
    and returns them with its step. Raises DataError without a complete checkpoint, CheckpointError for another
    geometry."""
    with Checkpoints(run / "checkpoints", config, reads_only=True) as checkpoints:
        while True:
            step = step_of(checkpoints, which, "unimp train")
            try:
                trainable = checkpoints.restore_parameters(step, parameters.trainable)
                break
            except DamagedError:
                if checkpoints.is_kept(step):
                    raise  # otherwise a training has replaced it in the meantime
    return Parameters(parameters.graph, trainable, load_frozen(run / "frozen", parameters.frozen)), step
