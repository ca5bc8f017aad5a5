"""Loads batches and sends them to the devices while the previous step runs."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class LoadedBatch:
    """A process's share of a global batch, in host memory.

    Attributes:
      arrays: The arrays that are sent to the devices.
      position: JSON position from which the data continues with the batch after this one.
      counts: JSON statistics of the global batch, which the log aggregates.
    """

    arrays: Any
    position: Any
    counts: dict[str, Any]


class Prefetcher:
    """Loads batches one step ahead of training.

    `fetch` is called while a step runs: it loads the next batch, starts its transfer, and waits for the step before the
    running one. The host is thus at most one step ahead, and at most two batches are on the devices.
    """

    def __init__(self, batches: Iterator[LoadedBatch], to_device: Callable[[Any], Any]):
        """Wraps an iterator of batches.

        Args:
          batches: At least as many batches as are fetched.
          to_device: Maps the arrays of a process's share to global arrays.
        """
        self._batches, self._to_device = batches, to_device
        self._next: tuple[LoadedBatch, Any] | None = None
        self._before: jax.Array | None = None
        self._waited = 0.0

    def take(self) -> tuple[LoadedBatch, Any]:
        """Returns (the next batch as loaded, the same batch on the devices)."""
        if self._next is None:
            self.fetch(None)
        taken, self._next = self._next, None
        assert taken is not None
        return taken

    def fetch(self, running: jax.Array | None) -> None:
        """Loads the batch after the one that was taken last.

        Args:
          running: Any result of the step that was started last; None if no step is running.
        """
        start = time.perf_counter()
        loaded = next(self._batches)
        if running is None or running.is_ready():
            self._waited += time.perf_counter() - start
        self._next = loaded, self._to_device(loaded.arrays)
        if self._before is not None:
            self._before.block_until_ready()
        self._before = running

    def waited(self) -> float:
        """Returns the seconds since the last call during which the devices were idle because no batch was ready."""
        waited, self._waited = self._waited, 0.0
        return waited
