"""Being asked to end: SIGTERM, which schedulers send before they take a machine away."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils


class EndRequest:
    """Whether this run has been asked to end. While it is a context, SIGTERM asks; nothing else happens then.

    Of several processes any one may be asked: all agree on the step at which they end, through JAX's preemption
    service, which has a handler of its own.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None
        self._listens = False

    def at(self, step: int) -> bool:
        """To be called by all processes before each step, with the same steps."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def __enter__(self) -> Self:
        self._listens = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
