"""Profiles of some steps for TensorBoard and xprof, configured in advance or on demand."""

import signal
import threading
from pathlib import Path
from typing import Any

import jax

ON_DEMAND = 5
"""Number of steps that are profiled after SIGUSR1."""


class Profile:
    """Profiles the requested steps, or the next ones after SIGUSR1, until the last of them is done. Each profile has
    its own folder, named by time; each of several processes writes its own profile."""

    def __init__(self, steps: tuple[int, int] | None, folder: Path):
        self._steps, self._folder, self._on, self._asked = steps, folder, False, False
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGUSR1, self._ask)

    def _ask(self, *_: Any) -> None:
        self._asked = True

    def before(self, step: int, state: Any) -> None:
        """Starts a profile if due; must be called before each step with its number and its inputs, which are waited
        for, so that the profile contains no other step."""
        if self._asked and not self._on:
            self._steps, self._asked = (step, step + ON_DEMAND - 1), False
        if self._steps is not None and step == self._steps[0]:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._on = True

    def after(self, step: int, state: Any) -> None:
        """Ends a profile if due; must be called after each step, with the state that it returns."""
        if self._on and self._steps is not None and step == self._steps[1]:
            jax.block_until_ready(state)
            self._stop()

    def close(self) -> None:
        """Writes the profile, even if training ends before its last step."""
        self._stop()
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)

    def _stop(self) -> None:
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
