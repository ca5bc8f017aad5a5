"""Restores the parameters of a run from one of its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from data_pipelines.errors import DataError
from experiments.parameters import Parameters
from unimp_jax.training.checkpoint import CheckpointConfig, Checkpoints
from unimp_jax.training.frozen import load_frozen
from unimp_jax.training.reading import DamagedError

Checkpoint = Literal["best", "latest"]


def step_of(checkpoints: Checkpoints, which: Checkpoint, command: str) -> int:
    """Returns the step of a checkpoint.

    Args:
      command: the command that trains such runs, for the error message.

    Raises:
      DataError: the run has no complete checkpoint.
    """
    step = checkpoints.best() if which == "best" else checkpoints.latest()
    if step is None:
        raise DataError(f"{checkpoints.folder.parent} has no complete checkpoint yet; run `{command}` on it first")
    return step


def restore_parameters(
    run: Path, which: Checkpoint, parameters: Parameters, config: CheckpointConfig
) -> tuple[Parameters, int]:
    """Reads only the parameters of a checkpoint, directly into their shardings.

    Args:
      parameters: shapes, dtypes and shardings, divided into trainable and frozen ones as in that run.

    Returns:
      (the parameters, the step of the checkpoint).

    Raises:
      DataError: the run has no complete checkpoint.
      CheckpointError: the checkpoint cannot be read, or has another geometry.
    """
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
