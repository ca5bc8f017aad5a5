"""Signals at unlucky moments: while a process starts, sets up its folder, compiles, trains, and saves."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from experiments.soak.run import Attempt, Command, SoakError, logged, saved

When = Literal["starting", "setting up", "training", "saving"]
Signals = tuple[signal.Signals, ...]
LIMIT = 600.0


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a process is sent what."""

    when: When
    signals: Signals
    """One, or SIGTERM and, shortly after, SIGKILL."""
    number: int
    """Setting up: the change in the folder, counted from 1. Otherwise the step to come to, and no further."""
    delay: float
    """Seconds more; starting: seconds in all, if it does not come to the step before."""
    between: float
    """Seconds between two signals."""


@dataclasses.dataclass(frozen=True)
class Kill:
    """What came of it."""

    moment: Moment
    logged: int
    """The last step in the log."""
    saved: int
    """The last step with a whole checkpoint."""
    seconds: float
    """Since the process was started."""
    status: int

    def __str__(self) -> str:
        names = " + ".join(one.name for one in self.moment.signals)
        return (
            f"{names:<17} {self.moment.when:<10} step {self.logged:>4} logged, {self.saved:>4} saved, "
            f"{self.seconds:6.1f} s, status {self.status}"
        )


def draw_signals(kills: int, rng: random.Random) -> list[Signals]:
    """About half SIGKILL and half SIGTERM, a tenth of them both, in any order."""
    both = round(kills / 10)
    kinds: list[Signals] = [(signal.SIGTERM, signal.SIGKILL)] * both + [(signal.SIGKILL,)] * ((kills - both) // 2)
    kinds += [(signal.SIGTERM,)] * (kills - len(kinds))
    rng.shuffle(kinds)
    return kinds


def draw_moment(
    kill: int, kills: int, signals: Signals, at: int, steps: int, start: float, rng: random.Random
) -> Moment:
    """The moment of a kill, from 0 on, in a run whose log ends at step `at`.

    A tenth of the kills, the first ones, meet a folder that is being set up. The others may let the run come as far as
    their share of nine tenths of its steps, so that it is not over before the last one.

    Args:
      start: seconds from a process's start to its first step.
    """
    between = rng.uniform(0.0, 0.4)
    if kill < max(1, kills // 10):
        return Moment("setting up", signals, rng.randint(1, 8), rng.uniform(0.0, 0.01), between)
    goal = rng.randint(at + 1, max(at + 1, int(0.9 * steps * (kill + 1) / kills)))
    kind = rng.random()
    if kind < 0.2:
        return Moment("starting", signals, goal, rng.uniform(0.0, start), between)
    if kind < 0.5:
        return Moment("saving", signals, goal, rng.uniform(0.0, 0.08), between)
    return Moment("training", signals, goal, rng.uniform(0.0, 0.5), between)


def disturb(command: Command, run: Path, moment: Moment, printed: Path) -> Kill:
    """Starts the command, sends it the signals, and says how it ended.

    Raises:
      SoakError: it ended in another way than by the signal, or than it should.
    """
    attempt = Attempt(command, run, printed)
    _wait_for(moment, run, attempt)
    if attempt.process.poll() is not None:
        raise SoakError(
            f"exit status {attempt.process.returncode} before a signal was sent; it printed:\n{attempt.output()}"
        )
    begun = attempt.has_begun()
    for number, one in enumerate(moment.signals):
        time.sleep(moment.between if number else 0.0)
        attempt.process.send_signal(one)
    status = attempt.over(LIMIT)
    if status not in rightly(moment.signals, begun):
        names = " and ".join(one.name for one in moment.signals)
        raise SoakError(f"exit status {status} after {names}; it printed:\n{attempt.output()}")
    return Kill(moment, logged(run), saved(run), attempt.seconds, status)


def rightly(signals: Signals, begun: bool) -> set[int]:
    """The exit statuses that are right.

    Once a run has begun it ends with 0 when SIGTERM asks it to, and what it has done is saved. Before that nothing has
    been done that could be: SIGTERM ends Python at once, as it ends any program.
    """
    if signals == (signal.SIGKILL,):
        return {-signal.SIGKILL}
    asked = {0} if begun else {0, -signal.SIGTERM}
    return asked if signals == (signal.SIGTERM,) else asked | {-signal.SIGKILL}


def _wait_for(moment: Moment, run: Path, attempt: Attempt) -> None:
    """Returns at the moment, or when the process is over."""
    if moment.when == "starting":
        return _until(lambda: attempt.seconds >= moment.delay or logged(run) >= moment.number, attempt)
    if moment.when == "setting up":
        seen = set(_files(run))

        def changed() -> bool:
            seen.update(_files(run))
            return len(seen) - before >= moment.number

        before = len(seen)
        _until(changed, attempt)
    else:
        _until(lambda: logged(run) >= moment.number, attempt)
    if moment.when == "saving":
        _until(lambda: any((run / "checkpoints").glob("*.orbax-checkpoint-tmp")), attempt)
    time.sleep(moment.delay)


def _until(condition: Callable[[], bool], attempt: Attempt) -> None:
    while attempt.process.poll() is None and not condition():
        if attempt.seconds > LIMIT:
            attempt.over(0.0)  # which tells that it is not
        time.sleep(0.002)


def _files(folder: Path) -> list[tuple[str, int, int]]:
    """All that is in the folder, each with when it was changed and its size."""
    found = []
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            try:
                told = os.stat(os.path.join(place, name))
            except FileNotFoundError:
                continue
            found.append((os.path.join(place, name), told.st_mtime_ns, told.st_size))
    return found
