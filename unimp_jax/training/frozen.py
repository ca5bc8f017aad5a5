"""What does not train, on disk once a run and not once a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from data_pipelines.object_store import is_remote
from unimp_jax.processes import of_first
from unimp_jax.training.checkpoint import abstract
from unimp_jax.training.object_store import is_saved, options_of
from unimp_jax.training.reading import read_together


def save_frozen(folder: Path, parameters: Any) -> Any:
    """Writes the parameters, whole or not at all, unless they are there; returns those that are there.

    Where they are there, the arrays given are freed before those are read: there is room for them once.
    """
    if not jax.tree.leaves(parameters):
        return parameters
    if not of_first(is_saved(folder)):
        with ocp.StandardCheckpointer(**options_of(folder)) as checkpointer:
            checkpointer.save(folder.absolute(), parameters, force=is_remote(folder))  # what a kill left gives way
        return parameters
    shapes = abstract(parameters)
    for array in jax.tree.leaves(parameters):
        array.delete()
    return load_frozen(folder, shapes)


def load_frozen(folder: Path, shapes: Any) -> Any:
    """
    Raises:
      CheckpointError: they are missing, damaged, out of reach, or of another model.
    """
    if not jax.tree.leaves(shapes):
        return shapes
    handler = ocp.StandardCheckpointHandler()
    return read_together(
        f"{folder}: what does not train",
        lambda: handler.restore(folder.absolute(), args=ocp.args.StandardRestore(shapes)),
    )
