"""Ends a run that hangs, prints the stacks of its threads, and names the process that fell behind.

A host that stops feeding its chips blocks all others in their next collective, where they wait without an error. Every
process therefore publishes its current phase in the key-value store of JAX's distributed runtime.
"""

import contextlib
import dataclasses
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from typing import Any, Literal, Self

import jax
from jax._src import distributed

Phase = Literal["waiting for data", "computing", "validating", "saving"]
PHASES: tuple[Phase, ...] = ("waiting for data", "computing", "validating", "saving")
"""The phases in the order in which a step passes through them."""

STATUS = 3
"""Exit status of a process that the watchdog ends."""

KEY = "unimp_watchdog"


@dataclasses.dataclass(frozen=True)
class Beat:
    """The current phase of a process, and the seconds spent in it so far."""

    process: int
    host: str
    step: int
    phase: Phase
    seconds: float

    @property
    def place(self) -> tuple[int, int]:
        """Sort key in the order of work."""
        return self.step, PHASES.index(self.phase)

    def __str__(self) -> str:
        return f"process {self.process} ({self.host}), {self.phase} at step {self.step} for {self.seconds:.0f} s"


class Watchdog:
    """A background thread that watches training; use as a context manager."""

    def __init__(self, seconds: float | None):
        """Creates the watchdog; `seconds` is the duration of a phase after which the run hangs, None: never."""
        self._seconds, self._over, self._store = seconds, threading.Event(), store()
        self._at: tuple[int, Phase, float] = (0, "waiting for data", time.monotonic())
        self._seconds_of: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def begin(self, step: int, phase: Phase) -> None:
        """Marks the start of a phase; must be called by the training thread."""
        _, before, since = self._at
        self._at = step, phase, time.monotonic()
        self._seconds_of[before] += self._at[2] - since

    def spent(self, waited: float) -> dict[str, float]:
        """Returns the seconds spent in each phase since the last call; must be called by the training thread. In
        `waited` of the seconds between validations and saves the devices waited for data; in the rest they computed."""
        self.begin(*self._at[:2])
        spent, self._seconds_of = self._seconds_of, dict.fromkeys(PHASES, 0.0)
        return {
            **spent,
            "waiting for data": waited,
            "computing": spent["waiting for data"] + spent["computing"] - waited,
        }

    def __enter__(self) -> Self:
        if self._seconds is not None:
            self.begin(*self._at[:2])
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        assert self._seconds is not None
        while not self._over.wait(min(self._seconds / 5, 10.0)):
            step, phase, since = self._at
            own = Beat(jax.process_index(), socket.gethostname(), step, phase, time.monotonic() - since)
            self._tell(own)
            if own.seconds > self._seconds:
                print(explained(own, self._others(own), self._seconds), file=sys.stderr, flush=True)
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                os._exit(STATUS)

    def _tell(self, own: Beat) -> None:
        if self._store is not None:
            with contextlib.suppress(Exception):  # if the runtime is gone, there is nobody to tell
                beat = json.dumps(dataclasses.asdict(own))
                self._store.key_value_set(f"{KEY}/{own.process}", beat, allow_overwrite=True)

    def _others(self, own: Beat) -> list[Beat]:
        if self._store is not None:
            with contextlib.suppress(Exception):
                beats = [Beat(**json.loads(value)) for _, value in self._store.key_value_dir_get(KEY)]
                return [beat for beat in beats if beat.process != own.process]
        return []


def store() -> Any:
    """Returns the key-value store that the processes of a run share; None if there is one process."""
    return distributed.global_state.client if jax.process_count() > 1 else None


def explained(own: Beat, others: list[Beat], seconds: float) -> str:
    """Returns the message for a run that hangs."""
    first = f"unimp: no progress for {seconds:g} s (--loop.hang-seconds), so this process ends: {own}."
    beats = [own, *others]
    behind = [beat for beat in beats if beat.place == min(beat.place for beat in beats)]
    if len(beats) == 1:
        return f"{first} The stacks of its threads:"
    if len(behind) == len(beats):
        return f"{first} All {len(beats)} processes are at the same point. The stacks of the threads of this process:"
    return f"{first} Behind the others: {'; '.join(map(str, behind))}. The stacks of the threads of this process:"
