"""Restores the parameters of a run from one of its checkpoints."""

from pathlib import Path
from typing import Literal

from data_pipelines.errors import DataError
from experiments.parameters import Parameters
from unimp_jax.training.checkpoint import CheckpointConfig, Checkpoints
from unimp_jax.training.frozen import load_frozen

Checkpoint = Literal["best", "latest"]


def step_of(checkpoints: Checkpoints, which: Checkpoint, command: str) -> int:
    """Returns the step of a checkpoint; DataError, which names the `command` that trains such runs, if there is
    none."""
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
        step = step_of(checkpoints, which, "unimp train")
        trainable = checkpoints.restore_parameters(step, parameters.trainable)
    return Parameters(parameters.graph, trainable, load_frozen(run / "frozen", parameters.frozen)), step
