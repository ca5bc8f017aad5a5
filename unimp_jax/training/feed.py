"""Batches on their way to the devices while the step before them runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from unimp_jax.batch import Batch


class Feed:
    """Takes batches one ahead of the steps that train on them.

    `fetch` is called while a step runs: it loads the next batch, starts its transfer, and waits for the step before
    the running one, so that the host is never further ahead than that and no more than two batches lie on the devices.
    """

    def __init__(self, batches: Iterator[Any], to_device: Callable[[dict[str, np.ndarray]], Batch]):
        self._batches, self._to_device = batches, to_device
        self._next: tuple[Any, Batch] | None = None
        self._before: jax.Array | None = None
        self._waited = 0.0

    def take(self) -> tuple[Any, Batch]:
        """(batch as loaded, the same on the devices)."""
        if self._next is None:
            self.fetch(None)
        taken, self._next = self._next, None
        assert taken is not None
        return taken

    def fetch(self, running: jax.Array | None) -> None:
        """
        Args:
          running: any result of the step that was started last.
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
        """Seconds since the last call in which a batch was waited for, until the devices had nothing left to do."""
        waited, self._waited = self._waited, 0.0
        return waited
