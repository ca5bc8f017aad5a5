"""What does not train, on disk once a run and not once a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from unimp_jax.processes import wait_for_all
from unimp_jax.training.checkpoint import CheckpointError, abstract


def save_frozen(folder: Path, parameters: Any) -> Any:
    """Writes the parameters, whole or not at all, unless they are there; returns those that are there."""
    if not jax.tree.leaves(parameters):
        return parameters
    there = folder.exists()
    wait_for_all("all have looked for the frozen parameters")
    if not there:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder.absolute(), parameters)
        return parameters
    return load_frozen(folder, abstract(parameters))


def load_frozen(folder: Path, shapes: Any) -> Any:
    """
    Raises:
      CheckpointError: they are missing, damaged, or of another model.
    """
    if not jax.tree.leaves(shapes):
        return shapes
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(folder.absolute(), shapes)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{folder}: the frozen parameters cannot be read ({reason})") from error
