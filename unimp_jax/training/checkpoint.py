"""Whole checkpoints or none: written in the background, the latest ones and the best one kept."""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from data_pipelines.atomic import write_json
from data_pipelines.object_store import is_remote
from unimp_jax.processes import of_first, wait_for_all
from unimp_jax.training.object_store import options_of, set_aside
from unimp_jax.training.reading import CheckpointError, DamagedError, read_together

DELETED = "deleted"
"""Among the checkpoints, where those go that are about to be deleted."""
METRICS = "metrics"
"""In a checkpoint, a folder and in it a file of JSON, as Orbax names them."""
LEAST_SLICE = 2**20
"""Bytes. Devices that hold the same array write a slice of it each where a slice is at least as large. For each shape
of a slice a program is compiled, which takes longer than to write a small array from one device."""

logging.getLogger("absl").disabled = True  # Orbax warns of every handler that takes the place of its own
ocp.type_handlers.register_type_handler(
    jax.Array,
    ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=LEAST_SLICE),
    override=True,
)
logging.getLogger("absl").disabled = False


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints stay."""

    keep_latest: int = 2
    """So many of the latest; two, so that one is whole whatever happens to the other."""
    best_metric: str = "NDCG@10"
    """The best checkpoint by this validation metric (larger is better) stays as well."""

    def __post_init__(self) -> None:
        if self.keep_latest < 1:
            raise ValueError(f"checkpoint.keep_latest {self.keep_latest} must be 1 or more")


class _Manager(ocp.CheckpointManager):
    def metrics(self, step: int) -> dict[str, float] | None:
        """What was measured at a step; None where nothing was, or what was written of it is damaged."""
        try:
            measured = super().metrics(step)
        except ValueError:  # it is no JSON
            return None
        return measured if isinstance(measured, dict) else None


class Checkpoints:
    """Checkpoints of one run, by step. Use as a context: leaving it waits until all is written."""

    def __init__(self, folder: Path, config: CheckpointConfig, *, reads_only: bool = False):
        """`reads_only`: nothing in the folder is touched, for another process may be writing there."""
        self.folder, self._best_metric, self._reads_only = folder, config.best_metric, reads_only
        best = policies.BestN(get_metric_fn=self._quality, n=1, keep_checkpoints_without_metrics=False)
        self._manager = _Manager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(config.keep_latest), best]),
                best_fn=self._quality,  # without one, metrics are not written, and forgotten with the process
                todelete_subdir=None if is_remote(folder) else DELETED,
                create=not reads_only,
                cleanup_tmp_directories=not reads_only,
                **options_of(folder),
            ),
        )
        self._delete()

    def save(self, step: int, state: Any, notes: dict[str, Any], metrics: dict[str, float] | None = None) -> None:
        """Starts writing `state` (a tree of arrays) with `notes` (JSON); the arrays may be donated at once.

        Raises:
          CheckpointError: this or an earlier checkpoint could not be written, for lack of room, say.
        """
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes))
        measured = metrics if metrics and self._best_metric in metrics else {}
        try:
            self._manager.wait_until_finished()
            self._delete()
            self._manager.save(step, args=items, metrics=measured)
        except Exception as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Returns when everything is on disk; raises as `save` does."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            self._delete()
        except Exception as error:
            raise self._failed(error) from error

    def note_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Adds what was measured to a checkpoint that was saved before it could be; by a process of its own alone."""
        file = self.folder / str(step) / METRICS / METRICS
        if self._best_metric in metrics and file.exists():
            write_json(file, metrics)
            self._manager.reload()

    def latest(self) -> int | None:
        """The latest step as the first process sees it (so is `best`): somebody may be writing there."""
        return self._of_first(self._manager.latest_step())

    def best(self) -> int | None:
        """The step with the best metric, the latest of equals, as it stays; or the latest where none was measured."""
        steps = self._manager.all_steps()
        return self._of_first(
            max(steps, key=lambda step: (self._quality(self._manager.metrics(step)), step), default=None)
        )

    def _of_first(self, step: int | None) -> int | None:
        found = of_first(-1 if step is None else step)
        return None if found < 0 else found

    def _quality(self, metrics: dict[str, float] | None) -> float:
        return (metrics or {}).get(self._best_metric, -math.inf)

    def _delete(self) -> None:
        """Those that have given way to newer ones. They were moved first, so that none is ever there in part."""
        if jax.process_index() == 0 and not self._reads_only and not is_remote(self.folder):
            shutil.rmtree(self.folder / DELETED, ignore_errors=True)

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """(state, notes) of a step, straight into the shardings of `abstract_state`.

        Raises:
          CheckpointError: the checkpoint is damaged (`DamagedError`) or out of reach, or its arrays have other names
            or shapes.
        """
        folder = (self.folder / str(step)).absolute()

        def read() -> tuple[Any, dict[str, Any]]:  # by handlers: a checkpointer would wait for the other processes
            notes = ocp.JsonCheckpointHandler().restore(folder / "notes", args=ocp.args.JsonRestore())
            states = ocp.StandardCheckpointHandler()
            return states.restore(folder / "state", args=ocp.args.StandardRestore(abstract_state)), notes

        return read_together(f"{self.folder}: step {step}", read)

    def restore_parameters(self, step: int, abstract_trainable: Any, part: str = "trainable") -> Any:
        """The parameters of a step that train, and nothing else of its state, into the shardings asked for.

        Args:
          step: a step that `latest` or `best` gave.
          abstract_trainable: shapes, dtypes and shardings; parts of the model that are not named are not read.
          part: what the state calls them.

        Raises:
          CheckpointError: as of `restore`.
        """
        item = {part: abstract_trainable}
        wanted = ocp.args.PyTreeRestore(
            item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
        )
        folder = (self.folder / str(step) / "state").absolute()

        def read() -> Any:
            restored = ocp.PyTreeCheckpointHandler().restore(folder, args=wanted)[part]
            for path, leaf in jax.tree.leaves_with_path(restored):
                if isinstance(leaf, jax.ShapeDtypeStruct):  # which Orbax leaves where a name is not in the checkpoint
                    raise ValueError(f"it has no parameter {jax.tree_util.keystr(path, simple=True, separator='/')}")
            return restored

        return read_together(f"{self.folder}: step {step}", read)

    def restore_latest(self, abstract_state: Any) -> tuple[Any, dict[str, Any]] | None:
        """(state, notes) of the latest step that can be read, None where there is no checkpoint.

        A damaged one is reported on standard error and set aside in `damaged/` beside the checkpoints, once an earlier
        one has been read in its place. All processes read the same step.

        Raises:
          CheckpointError: all are damaged, or the latest whole one is out of reach or of another configuration.
        """
        failures: list[tuple[int, DamagedError]] = []
        for step in self._steps():
            try:
                restored = self.restore(step, abstract_state)
            except DamagedError as error:
                failures.append((step, error))
                continue
            for damaged, reason in failures:
                print(f"WARNING: {reason}\nWARNING: going on from step {step} instead", file=sys.stderr)
                self._set_aside(damaged)
            return restored
        if failures:
            raise failures[0][1]
        return None

    def _steps(self) -> list[int]:
        """All, from the latest on, as process 0 sees them: a network's file system may show others less for a while."""
        steps = sorted(self._manager.all_steps(), reverse=True)
        if jax.process_count() == 1:
            return steps
        count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
        own = np.resize(np.array([*steps, -1], np.int32), max(count, 1))
        return [] if not count else np.asarray(multihost_utils.broadcast_one_to_all(own)).tolist()

    def _set_aside(self, step: int) -> None:
        aside = self.folder.parent / "damaged"
        if jax.process_index() == 0:
            aside.mkdir(exist_ok=True)
            taken = sum(1 for folder in aside.glob("*") if folder.name.startswith(f"{step}."))
            set_aside(self.folder / str(step), aside / f"{step}.{taken + 1}")
        wait_for_all("a damaged checkpoint is set aside")
        self._manager.reload()

    def _failed(self, error: Exception) -> CheckpointError:
        text = " ".join(str(error).split())
        full = "No space left" in text or "RESOURCE_EXHAUSTED" in text or "Disk quota" in text
        reason = "no space left on the device" if full else text[:300]
        steps = self._manager.all_steps(read=True)
        whole = f"the last whole one is step {max(steps)}" if steps else "there is no earlier one"
        return CheckpointError(
            f"{self.folder}: a checkpoint could not be written ({reason}); {whole}: "
            "make room and run the same command again to go on from there"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        self._manager.close()


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays."""
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding), tree)
