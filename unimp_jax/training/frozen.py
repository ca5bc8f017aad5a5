"""Storage of frozen parameters: once per run instead of in every checkpoint."""

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
    """Writes the parameters atomically unless they exist already, and returns those on disk. If they exist, the given
    arrays are freed before the stored ones are read, because memory holds them only once."""
    if not jax.tree.leaves(parameters):
        return parameters
    if not of_first(is_saved(folder)):
        with ocp.StandardCheckpointer(**options_of(folder)) as checkpointer:
            checkpointer.save(folder.absolute(), parameters, force=is_remote(folder))  # replaces an aborted write
        return parameters
    shapes = abstract(parameters)
    for array in jax.tree.leaves(parameters):
        array.delete()
    return load_frozen(folder, shapes)


def load_frozen(folder: Path, shapes: Any) -> Any:
    """Reads the frozen parameters into the given shapes and shardings.

    Raises:
      CheckpointError: They are missing, damaged, unreachable, or of another model.
    """
    if not jax.tree.leaves(shapes):
        return shapes
    handler = ocp.StandardCheckpointHandler()
    return read_together(
        f"{folder}: the frozen parameters",
        lambda: handler.restore(folder.absolute(), args=ocp.args.StandardRestore(shapes)),
    )
