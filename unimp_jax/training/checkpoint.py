"""Atomic checkpoints, written in the background; the latest ones and the best one are kept."""

import contextlib
import dataclasses
import itertools
import logging
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from data_pipelines.atomic import write_json
from data_pipelines.object_store import is_remote
from unimp_jax.processes import check_shared, of_first, wait_for_all
from unimp_jax.training.object_store import options_of, set_aside
from unimp_jax.training.reading import CheckpointError, DamagedError, read_together

DELETED = "deleted"
"""Subfolder of the checkpoints to which checkpoints are moved before deletion."""
METRICS = "metrics"
"""Name of a folder in a checkpoint and of the JSON file in it, as in Orbax."""
LEAST_SLICE = 2**20
"""In bytes. Devices that hold the same array each write a slice of it if slices have at least this size. A program is
compiled for each slice shape, which takes longer than writing a small array from one device."""

logging.getLogger("absl").disabled = True  # Orbax warns of every handler that replaces its own
ocp.type_handlers.register_type_handler(
    jax.Array,
    ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=LEAST_SLICE),
    override=True,
)
logging.getLogger("absl").disabled = False


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints are kept."""

    keep_latest: int = 2
    """Number of latest checkpoints to keep; with two, one is intact whatever happens to the other."""
    best_metric: str = "NDCG@10"
    """Validation metric (larger is better) whose best checkpoint is also kept."""

    def __post_init__(self) -> None:
        if self.keep_latest < 1:
            raise ValueError(f"checkpoint.keep_latest {self.keep_latest} must be 1 or more")


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Returns False: `EndRequest` alone asks JAX, in order of steps; Orbax would also ask about earlier ones."""
        return False

    def metrics(self, step: int) -> dict[str, float] | None:
        """Returns the metrics of a step; None if there are none or their file is damaged."""
        try:
            measured = super().metrics(step)
        except ValueError:  # not JSON
            return None
        return measured if isinstance(measured, dict) else None


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The checkpoints of one run, by step. As a context manager, it waits on exit until all are written."""

    def __init__(self, folder: Path, config: CheckpointConfig, *, reads_only: bool = False):
        """Opens a folder; with `reads_only` nothing in it is changed, because another process may be writing there.

        All processes must call this together; before it, they may have been busy for different times.

        Raises:
          ValueError: Not all processes would write to the same folder.
        """
        wait_for_all("checkpoints are opened")  # what follows are collectives of devices
        self.folder, self._best_metric, self._reads_only = folder, config.best_metric, reads_only
        if not reads_only and not is_remote(folder):
            check_shared(folder)
        best = policies.BestN(get_metric_fn=self._quality, n=1, keep_checkpoints_without_metrics=False)
        self._manager = _Manager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(config.keep_latest), best]),
                best_fn=self._quality,  # without it, metrics are not written and are lost with the process
                todelete_subdir=None if is_remote(folder) else DELETED,
                create=not reads_only,
                cleanup_tmp_directories=not reads_only,
                **options_of(folder),
            ),
        )
        self._delete()

    def save(self, step: int, state: Any, notes: dict[str, Any], metrics: dict[str, float] | None = None) -> None:
        """Starts writing `state` (a tree of arrays) with `notes` (JSON); the arrays may be donated immediately.

        Raises:
          CheckpointError: This or an earlier checkpoint could not be written, for example for lack of space.
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
        """Waits until everything is on disk; raises like `save`."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            self._delete()
        except Exception as error:
            raise self._failed(error) from error

    def note_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Adds metrics to a checkpoint that was saved before they were measured; for a single process only."""
        file = self.folder / str(step) / METRICS / METRICS
        if self._best_metric in metrics and file.exists():
            write_json(file, metrics)
            self._manager.reload()

    def latest(self) -> int | None:
        """Returns the latest step as the first process sees it (like `best`): another process may be writing."""
        return self._of_first(self._manager.latest_step())

    def best(self) -> int | None:
        """Returns the kept step with the best metric, ties by the latest; the latest step if there are no metrics."""
        steps = self._manager.all_steps()
        return self._of_first(
            max(steps, key=lambda step: (self._quality(self._manager.metrics(step)), step), default=None)
        )

    def is_kept(self, step: int) -> bool:
        """Returns whether a step is still there, and looks which others are; for the first process's view."""
        self._manager.reload()
        return bool(of_first(step in self._manager.all_steps()))

    def _of_first(self, step: int | None) -> int | None:
        found = of_first(-1 if step is None else step)
        return None if found < 0 else found

    def _quality(self, metrics: dict[str, float] | None) -> float:
        return (metrics or {}).get(self._best_metric, -math.inf)

    def _delete(self) -> None:
        """Deletes replaced checkpoints, which were moved away first so that no partial checkpoint is ever visible."""
        if jax.process_index() == 0 and not self._reads_only and not is_remote(self.folder):
            shutil.rmtree(self.folder / DELETED, ignore_errors=True)

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """Returns (state, notes) of a step, read directly into the shardings of `abstract_state`.

        Raises:
          CheckpointError: The checkpoint is damaged (`DamagedError`) or unreachable, or its arrays have other names or
            shapes.
        """
        folder = (self.folder / str(step)).absolute()

        def read() -> tuple[Any, dict[str, Any]]:  # by handlers: a checkpointer would wait for other processes
            notes = ocp.JsonCheckpointHandler().restore(folder / "notes", args=ocp.args.JsonRestore())
            states = ocp.StandardCheckpointHandler()
            return states.restore(folder / "state", args=ocp.args.StandardRestore(abstract_state)), notes

        return read_together(f"{self.folder}: step {step}", read)

    def restore_parameters(self, step: int, abstract_trainable: Any, part: str = "trainable") -> Any:
        """Returns the trainable parameters of a step and nothing else of its state, in the requested shardings.

        Args:
          step: A step returned by `latest` or `best`.
          abstract_trainable: Shapes, dtypes and shardings; parts of the model that it does not contain are not read.
          part: Name of these parameters in the state.

        Raises:
          CheckpointError: See `restore`.
        """
        item = {part: abstract_trainable}
        wanted = ocp.args.PyTreeRestore(
            item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
        )
        folder = (self.folder / str(step) / "state").absolute()

        def read() -> Any:
            restored = ocp.PyTreeCheckpointHandler().restore(folder, args=wanted)[part]
            for path, leaf in jax.tree.leaves_with_path(restored):
                if isinstance(leaf, jax.ShapeDtypeStruct):  # Orbax leaves it where the checkpoint lacks a name
                    raise ValueError(f"it has no parameter {jax.tree_util.keystr(path, simple=True, separator='/')}")
            return restored

        return read_together(f"{self.folder}: step {step}", read)

    def restore_latest(self, abstract_state: Any) -> tuple[Any, dict[str, Any]] | None:
        """Returns (state, notes) of the latest readable step, or None if there is no checkpoint.

        A damaged checkpoint is reported on standard error and moved to `damaged/` next to the checkpoints, after an
        earlier one has been read instead. All processes read the same step.

        Raises:
          CheckpointError: All are damaged, or the latest intact one is unreachable or of another configuration.
        """
        failures: list[tuple[int, DamagedError]] = []
        for step in self._steps():
            try:
                restored = self.restore(step, abstract_state)
            except DamagedError as error:
                failures.append((step, error))
                continue
            for damaged, reason in failures:
                print(f"WARNING: {reason}\nWARNING: continuing from step {step} instead", file=sys.stderr)
                self._set_aside(damaged)
            return restored
        if failures:
            raise failures[0][1]
        return None

    def _steps(self) -> list[int]:
        """Returns all steps, latest first, as process 0 sees them; network file systems may lag for other processes."""
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
            free = next(place for n in itertools.count(1) if not (place := aside / f"{step}.{n}").exists())
            set_aside(self.folder / str(step), free)
        wait_for_all("a damaged checkpoint is set aside")
        self._manager.reload()

    def _failed(self, error: Exception) -> CheckpointError:
        text = " ".join(str(error).split())
        full = "No space left" in text or "RESOURCE_EXHAUSTED" in text or "Disk quota" in text
        reason = "no space left on the device" if full else text[:300]
        steps = self._manager.all_steps(read=True)
        whole = f"the last complete checkpoint is of step {max(steps)}" if steps else "there is no earlier one"
        return CheckpointError(
            f"{self.folder}: a checkpoint could not be written ({reason}); {whole}: free some space and run the "
            "same command again to continue from there"
        )

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        self._manager.close()


def abstract(tree: Any) -> Any:
    """Returns shapes, dtypes and shardings of a tree of arrays."""
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding), tree)
