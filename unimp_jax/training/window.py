"""The steps between two rows of the log, including those done before an interruption."""

import abc
import time
from typing import Any

import jax
import numpy as np

from unimp_jax.training.prefetch import LoadedBatch


class Window(abc.ABC):
    """Collects metrics of steps until a subclass aggregates them into a row of the log.

    Attributes:
      step_metrics: Dataclass of arrays that a step returns.
      metrics: Metrics of each step since the last row; arrays that may not be computed yet.
      counts: Counts of each step's batch (`LoadedBatch.counts`).
      own: Number of the last steps done by this process; an interrupted process did the others.
    """

    step_metrics: type

    def __init__(self, notes: dict[str, Any] | None):
        """Starts a window; `notes` come from the checkpoint that training continues from, None for a new run."""
        self._position = (notes or {}).get("position")
        # An earlier version used other names for metrics; its unlogged steps are missing in the next row.
        steps = [step for step in (notes or {}).get("window", []) if "counts" in step]
        self.metrics: list[Any] = [
            self.step_metrics(**{name: np.asarray(x, np.float32) for name, x in step["metrics"].items()})
            for step in steps
        ]
        self.counts: list[dict[str, Any]] = [step["counts"] for step in steps]
        self.own = 0
        self._since = time.perf_counter()

    @abc.abstractmethod
    def row(self, seconds: float, waited: float) -> dict[str, float]:
        """Aggregates the steps, whose metrics are already on the host, into a row: this process's own ones took
        `seconds`, in `waited` of which the devices waited for data."""

    @abc.abstractmethod
    def progress(self, row: dict[str, float]) -> dict[str, str]:
        """Returns the values of a row to show beside the progress bar."""

    @abc.abstractmethod
    def consecutive_skips(self) -> dict[str, int]:
        """Returns the counts of consecutive skips after the last step, for `guard.check_skips`."""

    def notes(self) -> dict[str, Any]:
        """Returns what a checkpoint stores beside the state, as JSON: the data position and the steps not logged yet,
        for which it waits."""
        metrics = [
            {name: np.asarray(x).tolist() for name, x in vars(one).items()} for one in jax.device_get(self.metrics)
        ]
        window = [{"metrics": one, "counts": counts} for one, counts in zip(metrics, self.counts, strict=True)]
        return {"position": self._position, "window": window}

    def add(self, batch: LoadedBatch, metrics: Any) -> None:
        """Adds a step."""
        self.metrics.append(metrics)
        self.counts.append(batch.counts)
        self._position = batch.position
        self.own += 1

    def restart_clock(self) -> None:
        """Excludes the time since the last row, such as for validation and saving, from the duration of the steps."""
        if not self.metrics:
            self._since = time.perf_counter()

    def close(self, waited: float) -> tuple[dict[str, float], dict[str, int]]:
        """Waits until all steps are done and empties the window; returns (the row of the log, the counts of consecutive
        skips)."""
        self.metrics = jax.device_get(self.metrics)
        row, skips = self.row(time.perf_counter() - self._since, waited), self.consecutive_skips()
        self.metrics, self.counts, self.own = [], [], 0
        self._since = time.perf_counter()
        return row, skips
