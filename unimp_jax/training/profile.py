"""A profile of some steps, as TensorBoard and xprof read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax


class Profile:
    """Starts before the first of the steps asked for and ends when the last is done."""

    def __init__(self, steps: tuple[int, int] | None, folder: Path):
        self._steps, self._folder, self._on = steps, folder, False

    def before(self, step: int, state: Any) -> None:
        """`state`: what the step waits for, so that nothing else is in the profile."""
        if self._steps is not None and step == self._steps[0]:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._on = True

    def after(self, step: int, state: Any) -> None:
        """`state`: what the step gives."""
        if self._on and self._steps is not None and step == self._steps[1]:
            jax.block_until_ready(state)
            self.end()

    def end(self) -> None:
        """Writes it, also where training ends before the last of its steps."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
