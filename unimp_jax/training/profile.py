"""A profile of some steps, which TensorBoard and xprof read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax


class Profile:
    """Starts before the first of the steps asked for and ends when the last is done."""

    def __init__(self, steps: tuple[int, int] | None, folder: Path):
        self._steps, self._folder, self._on = steps, folder, False

    def before(self, step: int, state: Any) -> None:
        """To be called before each step.

        Args:
          step: its number.
          state: what the step depends on; it is waited for, so that no other step is in the profile.
        """
        if self._steps is not None and step == self._steps[0]:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._on = True

    def after(self, step: int, state: Any) -> None:
        """To be called after each step, with the state that it returns."""
        if self._on and self._steps is not None and step == self._steps[1]:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Writes the profile, also where training ends before the last of its steps."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
