"""All cells of a sweep, as many at once as there is room for, each after those that it needs."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from experiments.lock import holder, is_free
from experiments.sweep.asked import AskedToEnd
from experiments.sweep.engines import Engine, Running
from experiments.sweep.files import read_json
from experiments.sweep.worker import BUSY, DONE, ENDED, FAILED, is_done

LOOK_EVERY = 0.2
BUSY_EVERY = 2.0
"""Seconds between looks at workers, and at cells that another sweep is at."""
State = Literal["done", "failed", "ended", "not run"]


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a cell."""

    name: str
    state: State
    told: str = ""


class Workers:
    """Those of one sweep that are at work."""

    def __init__(self, folder: Path, engine: Engine):
        self.folder, self._engine = folder, engine
        self._running: dict[str, Running] = {}

    @property
    def room(self) -> int:
        return self._engine.room - len(self._running)

    @property
    def names(self) -> list[str]:
        return list(self._running)

    def start(self, name: str) -> None:
        self._running[name] = self._engine.start(self.folder / name)

    def ended(self) -> list[tuple[str, int]]:
        """Those that have ended since, with what they returned."""
        found = [(name, running.status()) for name, running in self._running.items()]
        over = [(name, status) for name, status in found if status is not None]
        for name, _ in over:
            del self._running[name]
        return over

    def end(self, name: str | None = None) -> None:
        """Asks one to, or all of them."""
        for running in [self._running[name]] if name is not None else list(self._running.values()):
            running.end()

    def leave(self) -> None:
        """Does not wait for them."""
        self._running.clear()

    def end_or_leave(self) -> None:
        if not self._engine.outlives:
            self.end()


def run_cells(
    folder: Path, needs: dict[str, Sequence[str]], engine: Engine, say: Callable[[str], None] = print
) -> tuple[list[Result], bool]:
    """(what became of each cell, in their order; whether it was asked to end before).

    Args:
      needs: cells, by the names of their folders -> those that must be done before.
      say: is told what happens.
    """
    results: dict[str, Result] = {}
    workers, later = Workers(folder, engine), dict[str, float]()
    waiting = list(needs)
    with AskedToEnd(workers.end_or_leave) as end:
        while waiting or workers.names:
            for name, status in workers.ended():
                if status == BUSY:
                    if name not in later:
                        say(f"{name}: {holder(folder / name / 'lock')} is at it; waiting")
                    later[name] = time.monotonic() + BUSY_EVERY
                    waiting.append(name)
                    continue
                results[name] = result(folder / name, status)
                say(f"[{len(results)} of {len(needs)}] {name} {results[name].state} {results[name].told}".rstrip())
            if end.asked:
                if engine.outlives:
                    workers.leave()
                waiting.clear()
            for name in list(waiting):
                unmet = [one for one in needs[name] if one not in results or results[one].state != "done"]
                failed = [one for one in unmet if one in results]
                if failed:
                    results[name] = Result(name, "not run", f"it needs {failed[0]} ({results[failed[0]].state})")
                elif unmet or not workers.room or time.monotonic() < later.get(name, 0.0):
                    continue
                elif is_done(folder / name):
                    results[name] = Result(name, "done", "by another sweep" if name in later else "before")
                elif name in later and not is_free(folder / name / "lock"):
                    later[name] = time.monotonic() + BUSY_EVERY
                    continue
                else:
                    workers.start(name)
                    say(f"{name} begins")
                waiting.remove(name)
            time.sleep(LOOK_EVERY if workers.names or waiting else 0)
    missing = {name: Result(name, "ended" if end.asked else "not run") for name in needs if name not in results}
    return [{**results, **missing}[name] for name in needs], end.asked


def result(folder: Path, status: int) -> Result:
    if status == DONE:
        seconds = (read_json(folder / "done.json") or {}).get("seconds", 0.0)
        return Result(folder.name, "done", f"in {seconds:.0f} s")
    if status == FAILED:
        failed = read_json(folder / "failed.json") or {}
        return Result(folder.name, "failed", failed.get("reason", "without an account"))
    if status in (ENDED, -signal.SIGTERM, -signal.SIGINT):  # of a worker that did not listen yet
        return Result(folder.name, "ended", "before it was done")
    return Result(folder.name, "failed", f"its worker ended with status {status}")


def summary(folder: Path, results: Sequence[Result]) -> str:
    """A table of what is not done, with the end of each failed cell's log."""
    counts = {state: sum(one.state == state for one in results) for state in ("done", "failed", "ended", "not run")}
    lines = [f"{len(results)} cells: " + ", ".join(f"{count} {state}" for state, count in counts.items() if count)]
    width = max((len(one.name) for one in results), default=0)
    lines += [f"{one.name:{width}}  {one.state}  {one.told}".rstrip() for one in results if one.state != "done"]
    for one in results:
        failed = read_json(folder / one.name / "failed.json") if one.state == "failed" else None
        if failed:
            lines += ["", f"{one.name}: {failed['command']}", *(f"  {line}" for line in failed["end"])]
            lines.append(f"  ({folder / one.name / 'log.txt'})")
    return "\n".join(lines)
