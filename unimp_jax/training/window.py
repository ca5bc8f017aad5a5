"""The steps between two rows of the log, also where the process was interrupted between them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from unimp_jax.training.prefetch import LoadedBatch


@dataclasses.dataclass(frozen=True)
class Steps:
    """What one row of the log sums up.

    Attributes:
      metrics: of each step, on the host.
      counts: of each step's batch (`LoadedBatch.counts`).
      own: how many of the last steps this process did; an interrupted one did the others.
      seconds: the time that the process's own steps took.
      waited: the seconds of these in which the devices waited for data.
    """

    metrics: Sequence[Any]
    counts: Sequence[dict[str, Any]]
    own: int
    seconds: float
    waited: float


class Summary(Protocol):
    """What the log says of one kind of training."""

    @property
    def metrics(self) -> type:
        """The dataclass of arrays that a step returns."""

    def row(self, steps: Steps) -> dict[str, float]:
        """Returns a row of the log."""

    def progress(self, row: dict[str, float]) -> dict[str, str]:
        """Returns what is shown beside the progress bar."""

    def consecutive_skips(self, last: Any) -> dict[str, int]:
        """Returns the counts for `SkipLimit.check` from the metrics of the last step."""


class Window:
    """Collects metrics of steps until they are summed up in a row of the log."""

    def __init__(self, summary: Summary, notes: dict[str, Any] | None = None):
        """
        Args:
          summary: sums the steps up.
          notes: those of the checkpoint that training continues from; None at the beginning.
        """
        self.summary, self._position = summary, (notes or {}).get("position")
        # An earlier version named the metrics otherwise; its steps since its last row are missing in the next one.
        steps = [step for step in (notes or {}).get("window", []) if "counts" in step]
        self._metrics = [
            summary.metrics(**{name: np.asarray(x, np.float32) for name, x in step["metrics"].items()})
            for step in steps
        ]
        self._counts = [step["counts"] for step in steps]
        self._own = 0
        self._since = time.perf_counter()

    def notes(self) -> dict[str, Any]:
        """Returns what a checkpoint needs beside the state, as JSON: the data's position and the steps not logged yet.

        It waits until these steps are done.
        """
        metrics = [
            {name: np.asarray(x).tolist() for name, x in vars(one).items()} for one in jax.device_get(self._metrics)
        ]
        window = [{"metrics": one, "counts": counts} for one, counts in zip(metrics, self._counts, strict=True)]
        return {"position": self._position, "window": window}

    def add(self, batch: LoadedBatch, metrics: Any) -> None:
        """Adds a step; its metrics may not be computed yet."""
        self._metrics.append(metrics)
        self._counts.append(batch.counts)
        self._position = batch.position
        self._own += 1

    def restart_clock(self) -> None:
        """Excludes the time since the last row, such as that of validation and saving, from that of the steps."""
        if not self._metrics:
            self._since = time.perf_counter()

    def close(self, waited: float) -> tuple[dict[str, float], dict[str, int]]:
        """Waits until all steps are done and empties the window.

        Args:
          waited: the seconds in which the devices waited for data.

        Returns:
          (the row of the log, the counts of consecutive skips after the last step).
        """
        metrics = jax.device_get(self._metrics)
        steps = Steps(metrics, self._counts, self._own, time.perf_counter() - self._since, waited)
        row, skips = self.summary.row(steps), self.summary.consecutive_skips(metrics[-1])
        self._metrics, self._counts, self._own = [], [], 0
        self._since = time.perf_counter()
        return row, skips
