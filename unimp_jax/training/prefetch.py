"""Batches are loaded and sent to the devices while the step before them runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class LoadedBatch:
    """A process's share of a global batch, in the memory of the host.

    Attributes:
      arrays: what is sent to the devices.
      position: JSON from which the data can be continued with the batch after this one.
      counts: JSON about the global batch, which the log sums up.
    """

    arrays: Any
    position: Any
    counts: dict[str, Any]


class Prefetcher:
    """Takes batches one ahead of the steps that train on them.

    `fetch` is called while a step runs: it loads the next batch, starts its transfer, and waits for the step before
    the running one, so that the host is never further ahead than that and no more than two batches lie on the devices.
    """

    def __init__(self, batches: Iterator[LoadedBatch], to_device: Callable[[Any], Any]):
        """
        Args:
          batches: at least as many as are fetched.
          to_device: the arrays of a process's share -> global arrays.
        """
        self._batches, self._to_device = batches, to_device
        self._next: tuple[LoadedBatch, Any] | None = None
        self._before: jax.Array | None = None
        self._waited = 0.0

    def take(self) -> tuple[LoadedBatch, Any]:
        """Returns (the next batch as it was loaded, the same on the devices)."""
        if self._next is None:
            self.fetch(None)
        taken, self._next = self._next, None
        assert taken is not None
        return taken

    def fetch(self, running: jax.Array | None) -> None:
        """Loads the batch after the one that was taken last.

        Args:
          running: any result of the step that was started last; None where no step runs.
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
        """Returns the seconds since the last call in which the devices had nothing to do because no batch was there."""
        waited, self._waited = self._waited, 0.0
        return waited
