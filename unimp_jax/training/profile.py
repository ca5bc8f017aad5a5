"""A profile of some steps, which TensorBoard and xprof read: of those named before, or on demand."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import jax

ON_DEMAND = 5
"""So many steps are profiled after SIGUSR1."""


class Profile:
    """Starts before the first of the steps asked for, or before the next one after SIGUSR1, and ends when the last is
    done. Each profile has a folder of its own, by its time; of several processes each writes its own."""

    def __init__(self, steps: tuple[int, int] | None, folder: Path):
        self._steps, self._folder, self._on, self._asked = steps, folder, False, False
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGUSR1, self._ask)

    def _ask(self, *_: Any) -> None:
        self._asked = True

    def before(self, step: int, state: Any) -> None:
        """To be called before each step.

        Args:
          step: its number.
          state: what the step depends on; it is waited for, so that no other step is in the profile.
        """
        if self._asked and not self._on:
            self._steps, self._asked = (step, step + ON_DEMAND - 1), False
        if self._steps is not None and step == self._steps[0]:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._on = True

    def after(self, step: int, state: Any) -> None:
        """To be called after each step, with the state that it returns."""
        if self._on and self._steps is not None and step == self._steps[1]:
            jax.block_until_ready(state)
            self._stop()

    def close(self) -> None:
        """Writes the profile, also where training ends before the last of its steps."""
        self._stop()
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)

    def _stop(self) -> None:
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
